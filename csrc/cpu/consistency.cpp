#include "cpu/consistency.hpp"

#include <cmath>

#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"

namespace pyrecon::PYRECON_ISA {
namespace {

// |a - b|^2 over n reals. Partial sums of 512 terms go into a double: one float sum over 5,486 terms loses a digit.
template <class T>
PYRECON_INLINE double squared_distance(const T* a, const T* b, int64_t n) {
  constexpr int64_t block = 512;
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t end = begin + block < n ? begin + block : n;
    Vec<T> even{}, odd{};
    int64_t i = begin;
    for (; i + 2 * lanes<T> <= end; i += 2 * lanes<T>) {
      const Vec<T> d0 = load(a + i) - load(b + i);
      const Vec<T> d1 = load(a + i + lanes<T>) - load(b + i + lanes<T>);
      even += d0 * d0;
      odd += d1 * d1;
    }
    T tail = sum<T>(even + odd);
    for (; i < end; ++i) tail += (a[i] - b[i]) * (a[i] - b[i]);
    total += tail;
  }
  return total;
}

}  // namespace

template <class T>
void project_l2_ball(const T* v, const T* center, const T* radius, T* out, int64_t batch, int64_t n, int threads) {
  parallel_for(threads, batch, n < 16384 ? 16384 / (n + 1) + 1 : 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const T *vb = v + b * n, *cb = center + b * n;
      T* ob = out + b * n;
      const double distance = std::sqrt(squared_distance(vb, cb, n));
      if (!(distance > radius[b])) {  // inside, or not a number: the input is the answer
        if (ob != vb) std::memcpy(ob, vb, n * sizeof(T));
        continue;
      }
      const T scale = static_cast<T>(radius[b] / distance);
      int64_t i = 0;
      for (; i + lanes<T> <= n; i += lanes<T>) store<T>(ob + i, load(cb + i) + (load(vb + i) - load(cb + i)) * scale);
      for (; i < n; ++i) ob[i] = cb[i] + (vb[i] - cb[i]) * scale;
    }
  });
}

template void project_l2_ball(const float*, const float*, const float*, float*, int64_t, int64_t, int);
template void project_l2_ball(const double*, const double*, const double*, double*, int64_t, int64_t, int);

}  // namespace pyrecon::PYRECON_ISA
