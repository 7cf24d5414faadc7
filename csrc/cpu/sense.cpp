#include "cpu/sense.hpp"

#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"

namespace pyrecon::PYRECON_ISA {
namespace {

template <class T>
struct Complex {
  T re, im;
};

template <class T>
PYRECON_INLINE Complex<T> at(const T* p, int64_t i) {
  return {p[2 * i], p[2 * i + 1]};
}

template <class T>
PYRECON_INLINE Complex<T> mul(Complex<T> a, Complex<T> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

template <class T>
PYRECON_INLINE Complex<T> mul_conj(Complex<T> a, Complex<T> b) {  // a * conj(b)
  return {a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im};
}

template <class T>
PYRECON_INLINE void put(T* p, int64_t i, Complex<T> v) {
  p[2 * i] = v.re;
  p[2 * i + 1] = v.im;
}

// The phase of row i times that of column j.
template <class T>
struct Phase {
  const T *p, *q;
  static inline __attribute__((always_inline)) Complex<T> of(const Phase& phase, int64_t i, int64_t j) {
    return phase.p ? mul(at(phase.p, i), at(phase.q, j)) : Complex<T>{1, 0};
  }
};

constexpr int64_t row_grain = 64;  // rows per thread at least: about 20 us of work

}  // namespace

template <class T>
void coil_expand(const T* image, const T* maps, const T* p, const T* q, T* out, const SenseShape& s, int threads) {
  const Phase<T> phase{p, q};
  parallel_for(threads, s.batch * s.coils * s.rows, row_grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t i = r % s.rows, c = r / s.rows % s.coils, b = r / (s.rows * s.coils);
      const T* x = image + 2 * (b * s.rows + i) * s.cols;
      const T* m = maps + 2 * (((s.maps_batch > 1 ? b : 0) * s.coils + c) * s.rows + i) * s.cols;
      T* o = out + 2 * r * s.cols;
      if (p)
        for (int64_t j = 0; j < s.cols; ++j) put(o, j, mul(mul(at(x, j), at(m, j)), Phase<T>::of(phase, i, j)));
      else
        for (int64_t j = 0; j < s.cols; ++j) put(o, j, mul(at(x, j), at(m, j)));
    }
  });
}

template <class T>
void coil_combine(const T* coils, const T* maps, const T* p, const T* q, T* out, const SenseShape& s, int threads) {
  const Phase<T> phase{p, q};
  parallel_for(threads, s.batch * s.rows, row_grain / 8, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t i = r % s.rows, b = r / s.rows;
      T* o = out + 2 * r * s.cols;
      for (int64_t j = 0; j < 2 * s.cols; ++j) o[j] = 0;
      for (int64_t c = 0; c < s.coils; ++c) {
        const T* e = coils + 2 * ((b * s.coils + c) * s.rows + i) * s.cols;
        const T* m = maps + 2 * (((s.maps_batch > 1 ? b : 0) * s.coils + c) * s.rows + i) * s.cols;
        for (int64_t j = 0; j < s.cols; ++j) {
          const Complex<T> term = mul_conj(at(e, j), at(m, j));
          o[2 * j] += term.re;
          o[2 * j + 1] += term.im;
        }
      }
      if (p)
        for (int64_t j = 0; j < s.cols; ++j) put(o, j, mul_conj(at(o, j), Phase<T>::of(phase, i, j)));
    }
  });
}

template <class T>
void coil_correlate(const T* coils, const T* image, const T* p, const T* q, T* out, const SenseShape& s, int threads) {
  const Phase<T> phase{p, q};
  parallel_for(threads, s.batch * s.coils * s.rows, row_grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t i = r % s.rows, b = r / (s.rows * s.coils);
      const T *e = coils + 2 * r * s.cols, *x = image + 2 * (b * s.rows + i) * s.cols;
      T* o = out + 2 * r * s.cols;
      if (p)
        for (int64_t j = 0; j < s.cols; ++j) put(o, j, mul_conj(at(e, j), mul(at(x, j), Phase<T>::of(phase, i, j))));
      else
        for (int64_t j = 0; j < s.cols; ++j) put(o, j, mul_conj(at(e, j), at(x, j)));
    }
  });
}

template <class T>
void coil_weight(const T* coils, const T* mask, const T* p, const T* q, T* out, const SenseShape& s, int threads) {
  const Phase<T> phase{p, q};
  parallel_for(threads, s.batch * s.coils * s.rows, row_grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t i = r % s.rows, b = r / (s.rows * s.coils);
      const T* w = mask + ((s.mask_batch > 1 ? b : 0) * s.mask_rows + (s.mask_rows > 1 ? i : 0)) * s.mask_cols;
      const int64_t step = s.mask_cols > 1;
      const T* e = coils + 2 * r * s.cols;
      T* o = out + 2 * r * s.cols;
      for (int64_t j = 0; j < s.cols; ++j) {
        Complex<T> v = at(e, j);
        if (p) v = mul(v, Phase<T>::of(phase, i, j));
        put(o, j, Complex<T>{v.re * w[step * j], v.im * w[step * j]});
      }
    }
  });
}

#define PYRECON_SENSE(T)                                                                            \
  template void coil_expand(const T*, const T*, const T*, const T*, T*, const SenseShape&, int);    \
  template void coil_combine(const T*, const T*, const T*, const T*, T*, const SenseShape&, int);   \
  template void coil_correlate(const T*, const T*, const T*, const T*, T*, const SenseShape&, int); \
  template void coil_weight(const T*, const T*, const T*, const T*, T*, const SenseShape&, int);
PYRECON_SENSE(float)
PYRECON_SENSE(double)

}  // namespace pyrecon::PYRECON_ISA
