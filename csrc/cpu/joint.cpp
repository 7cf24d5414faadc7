#include "cpu/joint.hpp"

#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"

#define PYRECON_INDEPENDENT _Pragma("GCC ivdep")

namespace pyrecon::PYRECON_ISA {
namespace {

// A pass goes twice over the coils of a block of pixels: first for what couples them, then to write. The second time
// the block comes from the cache: 15 coils x 4 arrays x 4 KiB.
constexpr int64_t block = 512;        // pixels
constexpr int64_t reals = 2 * block;  // complex numbers are pairs, and what a pixel's coils share is there twice
constexpr int64_t grain = 16384;      // complex numbers: some 10 us of work

template <class T>
PYRECON_INLINE T inverse(T squared) {  // 0/0 = 0; a NaN stays one
  return squared == 0 ? T(0) : T(1) / __builtin_sqrt(squared);
}
PYRECON_INLINE float inverse(float squared) { return squared == 0 ? 0.0f : 1.0f / __builtin_sqrtf(squared); }

// Sums over both parts of every pair, left in both.
template <class T>
PYRECON_INLINE void join(T* pairs, int64_t n) {
  PYRECON_INDEPENDENT
  for (int64_t i = 0; i < n / 2; ++i) pairs[2 * i] = pairs[2 * i + 1] = pairs[2 * i] + pairs[2 * i + 1];
}

template <class T>
PYRECON_INLINE void twice(const T* image, T* pairs, int64_t n) {
  PYRECON_INDEPENDENT
  for (int64_t i = 0; i < n / 2; ++i) pairs[2 * i] = pairs[2 * i + 1] = image[i];
}

template <class T>
PYRECON_INLINE void zero(T* v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) v[i] = 0;
}

// body(sample, first pixel, reals of the block, index of the block) over all blocks of all samples.
template <class Job, class Body>
PYRECON_INLINE void each_block(const Job& job, const Body& body) {
  const int64_t per_sample = (job.pixels + block - 1) / block;
  parallel_for(job.threads, job.batch * per_sample, 1 + grain / (block * job.coils), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / per_sample, pixel = i % per_sample * block;
      const int64_t left = job.pixels - pixel;
      body(b, pixel, 2 * (left < block ? left : block), i);
    }
  });
}

}  // namespace

template <class T>
void joint_coils(const JointCoils<T>& job) {
  each_block(job, [&](int64_t b, int64_t pixel, int64_t n, int64_t) {
    alignas(64) T scale[reals], image[reals];
    const int64_t plane = 2 * job.pixels, origin = b * job.coils * plane + 2 * pixel;
    const T* bar = job.extrapolated ? job.extrapolated + origin : job.maps + origin;
    zero(scale, n);
    for (int64_t c = 0; c < job.coils; ++c) {
      const T* s = job.maps + origin + c * plane;
      if (job.extrapolated) {
        const T* before = job.previous + origin + c * plane;
        T* to = job.extrapolated + origin + c * plane;
        const T beta = job.inertia[b];
        PYRECON_INDEPENDENT
        for (int64_t i = 0; i < n; ++i) {
          const T v = s[i] + beta * (s[i] - before[i]);
          to[i] = v;
          scale[i] += v * v;
        }
      } else {
        PYRECON_INDEPENDENT
        for (int64_t i = 0; i < n; ++i) scale[i] += s[i] * s[i];
      }
    }
    join(scale, n);
    twice(job.image + b * job.pixels + pixel, image, n);
    PYRECON_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) scale[i] = image[i] * inverse(scale[i]);
    for (int64_t c = 0; c < job.coils; ++c) {
      const T* s = bar + c * plane;
      T* to = job.out + origin + c * plane;
      PYRECON_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) to[i] = s[i] * scale[i];
    }
  });
}

template <class T>
void joint_step(const JointStep<T>& job) {
  each_block(job, [&](int64_t b, int64_t pixel, int64_t n, int64_t) {
    alignas(64) T inv[reals], along[reals], image[reals], residual[reals];
    const int64_t plane = 2 * job.pixels, origin = b * job.coils * plane + 2 * pixel;
    zero(inv, n);
    zero(along, n);
    const auto residual_of = [&](int64_t at) {
      const T* w = job.response + at;
      if (!job.data) return w;
      const T* z = job.data + at;
      PYRECON_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) residual[i] = w[i] - z[i];
      return static_cast<const T*>(residual);
    };
    for (int64_t c = 0; c < job.coils; ++c) {
      const T *s = job.maps + origin + c * plane, *r = residual_of(origin + c * plane);
      PYRECON_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) {
        inv[i] += s[i] * s[i];
        along[i] += s[i] * r[i];
      }
    }
    join(inv, n);
    join(along, n);
    twice(job.image + b * job.pixels + pixel, image, n);
    T* to = job.along + b * job.pixels + pixel;
    const T step = job.step ? job.step[b] : T(-1);
    PYRECON_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
      inv[i] = inverse(inv[i]);
      along[i] *= inv[i];
    }
    for (int64_t i = 0; i < n / 2; ++i) to[i] = along[2 * i];
    PYRECON_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
      image[i] *= step * inv[i];
      along[i] *= inv[i];
    }
    const bool step_taken = job.step != nullptr;
    for (int64_t c = 0; c < job.coils; ++c) {
      const T *s = job.maps + origin + c * plane, *r = residual_of(origin + c * plane);
      T* out = job.out + origin + c * plane;
      PYRECON_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) out[i] = (step_taken ? s[i] : T(0)) - image[i] * (r[i] - s[i] * along[i]);
    }
  });
}

template <class T>
void joint_test(const JointTest<T>& job) {
  const int64_t per_sample = (job.pixels + block - 1) / block;
  const Scratch<double> partial(3 * job.batch * per_sample);  // by block: the same sums for any number of threads
  each_block(job, [&](int64_t b, int64_t pixel, int64_t n, int64_t index) {
    alignas(64) T old_inv[reals], new_inv[reals], shrunk[reals], slope[reals], turned[reals], combined[reals];
    const int64_t plane = 2 * job.pixels, origin = b * job.coils * plane + 2 * pixel;
    zero(old_inv, n);
    zero(new_inv, n);
    zero(shrunk, n);  // |d|^2 until it is summed
    zero(slope, n);
    zero(turned, n);
    zero(combined, n);
    for (int64_t c = 0; c < job.coils; ++c) {
      const T *s = job.maps + origin + c * plane, *p = job.proposal + origin + c * plane;
      PYRECON_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) {
        const T d = p[i] - s[i];
        old_inv[i] += s[i] * s[i];
        new_inv[i] += p[i] * p[i];
        shrunk[i] += d * d;
      }
    }
    double moved = 0, excess = 0, change = 0;
    for (int64_t i = 0; i < n; ++i) moved += shrunk[i];
    join(old_inv, n);
    join(new_inv, n);
    PYRECON_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
      const T old = old_inv[i], now = new_inv[i];
      old_inv[i] = inverse(old);
      new_inv[i] = inverse(now);
      shrunk[i] = old * old_inv[i] - now * new_inv[i];  // |S| - |S'|
    }
    const T rate = T(1) / job.step[b];
    for (int64_t c = 0; c < job.coils; ++c) {
      const T *s = job.maps + origin + c * plane, *p = job.proposal + origin + c * plane;
      const T *y = job.moved + origin + c * plane, *z = job.data + origin + c * plane;
      T* to = job.unit + origin + c * plane;
      PYRECON_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) {
        const T now = p[i] * new_inv[i], e = now - s[i] * old_inv[i];
        slope[i] += (s[i] - y[i]) * e;
        turned[i] += e * e;
        combined[i] += now * z[i];
        to[i] = now;
      }
    }
    const T* image = job.image + b * job.pixels + pixel;
    const T* along = job.along + b * job.pixels + pixel;
    T* sum = job.combined + b * job.pixels + pixel;
    const T bound = static_cast<T>(job.bound);
    for (int64_t i = 0; i < n / 2; ++i) {
      sum[i] = combined[2 * i] + combined[2 * i + 1];
      const T u = image[i], curved = u * (bound * u - along[i]) / 2;
      // Where there was no map, or is none, the data term has no derivative: no bound is claimed.
      const bool smooth = old_inv[2 * i] != 0 && new_inv[2 * i] != 0;
      const T pixel_excess =
          shrunk[2 * i] * rate * (slope[2 * i] + slope[2 * i + 1]) + curved * (turned[2 * i] + turned[2 * i + 1]);
      excess += smooth ? pixel_excess : T(0);
      change += u * u * (turned[2 * i] + turned[2 * i + 1]);
    }
    partial[3 * index] = moved;
    partial[3 * index + 1] = excess;
    partial[3 * index + 2] = change;
  });
  for (int64_t b = 0; b < job.batch; ++b)
    for (int k = 0; k < 3; ++k) {
      double sum = 0;
      for (int64_t i = 0; i < per_sample; ++i) sum += partial[3 * (b * per_sample + i) + k];
      job.sums[3 * b + k] = static_cast<T>(sum);
    }
}

#define PYRECON_JOINT(T)                           \
  template void joint_coils(const JointCoils<T>&); \
  template void joint_step(const JointStep<T>&);   \
  template void joint_test(const JointTest<T>&);
PYRECON_JOINT(float)
PYRECON_JOINT(double)

}  // namespace pyrecon::PYRECON_ISA
