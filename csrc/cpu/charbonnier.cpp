#include "cpu/charbonnier.hpp"

#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"

#define PYRECON_INDEPENDENT _Pragma("GCC ivdep")

namespace pyrecon::PYRECON_ISA {
namespace {

constexpr int64_t grain = 16384;  // pixels: some 10 us of work
constexpr int64_t unit = 16;

PYRECON_INLINE float root(float v) { return __builtin_sqrtf(v); }
PYRECON_INLINE double root(double v) { return __builtin_sqrt(v); }

// Sixteen sums side by side, which compilers keep in vectors, then one in double precision.
template <class T>
PYRECON_INLINE double sum(const T* v, int64_t n) {
  T lanes_[unit] = {};
  int64_t j = 0;
  for (; j + unit <= n; j += unit)
    for (int64_t l = 0; l < unit; ++l) lanes_[l] += v[j + l];
  double total = 0;
  for (; j < n; ++j) total += v[j];
  for (int64_t l = 0; l < unit; ++l) total += lanes_[l];
  return total;
}

// Rows of one image, differences to the row below (the last row's own: zero) and to the right.
template <class T>
struct Rows {
  int64_t height, width;

  PYRECON_MEMBER const T* below(const T* image, int64_t i) const {
    return image + (i + 1 < height ? i + 1 : i) * width;
  }

  // down and right get the differences over the root, roots the root itself.
  PYRECON_MEMBER void differences(const T* image, int64_t i, T square, T* down, T* right, T* roots) const {
    const T *row = image + i * width, *next = below(image, i);
    const auto pixel = [&](int64_t j, T across) {
      const T along = next[j] - row[j], length = root(square + along * along + across * across);
      const T inverse = T(1) / length;
      roots[j] = length;
      down[j] = along * inverse;
      right[j] = across * inverse;
    };
    PYRECON_INDEPENDENT
    for (int64_t j = 0; j < width - 1; ++j) pixel(j, row[j + 1] - row[j]);
    pixel(width - 1, T(0));
  }
};

// Sums of rows, in order: the same whatever the number of threads.
template <class T>
PYRECON_INLINE void gather(const Charbonnier<T>& job, const double* of_rows) {
  for (int64_t b = 0; b < job.batch; ++b) {
    double total = 0;
    for (int64_t i = 0; i < job.height; ++i) total += of_rows[b * job.height + i];
    job.sums[b] = static_cast<T>(total);
  }
}

template <class T>
PYRECON_INLINE int shares_of(const Charbonnier<T>& job) {
  return share_count(job.threads, job.batch * job.height, 1 + grain / job.width);
}

}  // namespace

template <class T>
void charbonnier(const Charbonnier<T>& job) {
  const int64_t n = job.width, stride = (4 * n + 2 * unit) / unit * unit + unit;
  const int shares = shares_of(job);
  const Scratch<T> rows(shares * stride);
  const Scratch<double> sums(job.batch * job.height);
  const T square = static_cast<T>(job.epsilon * job.epsilon);
  const Rows<T> at{job.height, n};
  parallel_shares(shares, job.batch * job.height, [&](int share, int64_t begin, int64_t end) {
    T *above = rows.get() + share * stride, *down = above + n, *roots = down + n, *right = roots + n + 1;
    right[-1] = 0;  // what is left of the first pixel
    for (int64_t k = begin; k < end; ++k) {
      const int64_t b = k / job.height, i = k % job.height;
      const T* image = job.image + b * job.height * n;
      if (i == 0)
        for (int64_t j = 0; j < n; ++j) above[j] = 0;
      else if (k == begin)  // the row before is another share's
        at.differences(image, i - 1, square, above, right, roots);
      at.differences(image, i, square, down, right, roots);
      sums[k] = sum(roots, n);
      T* gradient = job.gradient + k * n;
      PYRECON_INDEPENDENT
      for (int64_t j = 0; j < n; ++j) gradient[j] = (above[j] - down[j]) + (right[j - 1] - right[j]);
      T* const spent = above;
      above = down, down = spent;
    }
  });
  gather(job, sums.get());
}

template <class T>
void charbonnier_curvature(const Charbonnier<T>& job) {
  const int64_t n = job.width, stride = (n + unit) / unit * unit;
  const int shares = shares_of(job);
  const Scratch<T> rows(shares * stride);
  const Scratch<double> sums(job.batch * job.height);
  const T square = static_cast<T>(job.epsilon * job.epsilon);
  const Rows<T> at{job.height, n};
  parallel_shares(shares, job.batch * job.height, [&](int share, int64_t begin, int64_t end) {
    T* forms = rows.get() + share * stride;
    for (int64_t k = begin; k < end; ++k) {
      const int64_t i = k % job.height, origin = (k - i) * n;
      const T *row = job.image + k * n, *next = at.below(job.image + origin, i);
      const T *moved = job.change + k * n, *lower = at.below(job.change + origin, i);
      const auto pixel = [&](int64_t j, T across, T turned) {
        const T along = next[j] - row[j], fallen = lower[j] - moved[j];
        forms[j] = (fallen * fallen + turned * turned) / root(square + along * along + across * across);
      };
      PYRECON_INDEPENDENT
      for (int64_t j = 0; j < n - 1; ++j) pixel(j, row[j + 1] - row[j], moved[j + 1] - moved[j]);
      pixel(n - 1, T(0), T(0));
      sums[k] = sum(forms, n);
    }
  });
  gather(job, sums.get());
}

#define PYRECON_CHARBONNIER(T)                      \
  template void charbonnier(const Charbonnier<T>&); \
  template void charbonnier_curvature(const Charbonnier<T>&);
PYRECON_CHARBONNIER(float)
PYRECON_CHARBONNIER(double)

}  // namespace pyrecon::PYRECON_ISA
