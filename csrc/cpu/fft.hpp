// A small mixed-radix FFT over split vectors: element i of a signal is the pair (re, im) of vectors at x + 2 * lanes *
// i, so `lanes` signals (columns of an image, say) are transformed at once and nothing is shuffled.
//
// Forward transforms decimate in frequency: they take natural order and leave frequency `frequency[p]` at position p.
// Inverse ones decimate in time, from that order back to natural: a filter in between needs no reordering at all. Both
// are unscaled. The first loads and the last stores go through functors, where products with coil maps ride along.
//
// Radices 2, 3, 4, 5, 8 are written out; odd primes up to 257 share one routine that halves the work by symmetry (23
// for the usual width 368 = 2^4 23). Its cost grows with the prime: at 193, for a width of 386, it still takes less
// than torch.fft. Lengths with larger prime factors are not for this transform.
#pragma once

#include <cstdint>

#include "cpu/simd.hpp"

namespace pyrecon::PYRECON_ISA {

// --- plan: a block of memory that the caller owns, pointers as offsets from its start ------------------------------
struct FftPlan {
  static constexpr int max_stages = 24, max_prime = 257;
  int32_t n, stages;
  int32_t radix[max_stages], m[max_stages];  // stage s works on blocks of radix * m elements
  int64_t twiddles[max_stages];              // m * (r - 1) pairs: exp(-2 pi i j q / (r m)), q = 1..r-1, for j = 0..m-1
  int64_t roots[max_stages];                 // odd primes: (cos, sin) of 2 pi j k / r, j, k = 1..(r-1)/2
  int64_t frequency, position;               // int32 tables: frequency at a position, and its inverse
  int64_t bytes;

  template <class T>
  const T* table(int64_t offset) const {
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(this) + offset);
  }
  const int32_t* frequencies() const { return table<int32_t>(frequency); }
  const int32_t* positions() const { return table<int32_t>(position); }
};

// Radices of n in order, and how many; 0 for n = 1, -1 where a prime factor is too large. Large radices come last: the
// last stage needs no twiddles.
inline int fft_factor(int64_t n, int32_t* radix) {
  int32_t up[FftPlan::max_stages];
  int count = 0, twos = 0;
  for (; n % 2 == 0; n /= 2) ++twos;
  for (int32_t p = 3; p <= FftPlan::max_prime; p += 2)
    for (; n % p == 0; n /= p) up[count++] = p;
  if (n != 1) return -1;
  for (; twos > 4 || twos == 3; twos -= 3) up[count++] = 8;
  for (; twos >= 2; twos -= 2) up[count++] = 4;
  if (twos) up[count++] = 2;
  for (int i = 1; i < count; ++i)  // ascending
    for (int k = i; k > 0 && up[k] < up[k - 1]; --k) {
      const int32_t swap = up[k];
      up[k] = up[k - 1];
      up[k - 1] = swap;
    }
  for (int i = 0; i < count; ++i) radix[i] = up[i];
  return count;
}

// Bytes of the plan for length n, 0 if there is none. With `memory` it is written there.
template <class T>
int64_t fft_plan(int64_t n, void* memory) {
  FftPlan plan{};
  plan.n = static_cast<int32_t>(n);
  plan.stages = fft_factor(n, plan.radix);
  if (plan.stages < 0 || n < 1 || n > (1 << 24)) return 0;
  int64_t end = sizeof(FftPlan), length = n;
  for (int s = 0; s < plan.stages; ++s) {
    const int64_t r = plan.radix[s], half = (r - 1) / 2;
    length /= r;
    plan.m[s] = static_cast<int32_t>(length);
    plan.twiddles[s] = end;
    end += 2 * length * (r - 1) * sizeof(T);
    plan.roots[s] = end;
    end += 2 * half * half * sizeof(T);
  }
  plan.frequency = end;
  plan.position = end + n * sizeof(int32_t);
  plan.bytes = plan.position + n * sizeof(int32_t);
  if (memory == nullptr) return plan.bytes;

  char* base = static_cast<char*>(memory);
  std::memcpy(base, &plan, sizeof plan);
  const auto put_root = [](T* to, int64_t k, int64_t of, int sign) {  // exp(sign 2 pi i k / of)
    const long double angle = 6.283185307179586476925286766559L * (k % of) / of;
    to[0] = static_cast<T>(__builtin_cosl(angle));
    to[1] = static_cast<T>(sign * __builtin_sinl(angle));
  };
  length = n;
  for (int s = 0; s < plan.stages; ++s) {
    const int64_t r = plan.radix[s], half = (r - 1) / 2, m = length / r;
    T* w = reinterpret_cast<T*>(base + plan.twiddles[s]);
    for (int64_t j = 0; j < m; ++j)
      for (int64_t q = 1; q < r; ++q, w += 2) put_root(w, j * q, length, -1);
    T* c = reinterpret_cast<T*>(base + plan.roots[s]);
    for (int64_t k = 1; k <= half; ++k)
      for (int64_t j = 1; j <= half; ++j, c += 2) put_root(c, j * k, r, 1);
    length = m;
  }
  int32_t* frequency = reinterpret_cast<int32_t*>(base + plan.frequency);
  int32_t* position = reinterpret_cast<int32_t*>(base + plan.position);
  for (int64_t p = 0; p < n; ++p) {
    int64_t rest = p, block = n, step = 1, f = 0;
    for (int s = 0; s < plan.stages; ++s) {  // position q_1 n/r_1 + q_2 n/(r_1 r_2) + .. holds q_1 + q_2 r_1 + ..
      block /= plan.radix[s];
      f += rest / block * step;
      rest %= block;
      step *= plan.radix[s];
    }
    frequency[p] = static_cast<int32_t>(f);
    position[f] = static_cast<int32_t>(p);
  }
  return plan.bytes;
}

// --- butterflies: forward DFT of R complex vectors in place; the inverse is the same with re and im exchanged --------
template <int R, class V>
PYRECON_INLINE void dft(V* re, V* im);

template <class V>
PYRECON_INLINE void dft2(V& ar, V& ai, V& br, V& bi) {
  const V tr = ar - br, ti = ai - bi;
  ar += br;
  ai += bi;
  br = tr;
  bi = ti;
}

template <class V>
PYRECON_INLINE void dft4(V& ar, V& ai, V& br, V& bi, V& cr, V& ci, V& dr, V& di) {
  dft2(ar, ai, cr, ci);
  dft2(br, bi, dr, di);
  const V sr = cr, si = ci, tr = dr, ti = di;  // a - c and b - d
  dr = ar - br;
  di = ai - bi;
  ar += br;
  ai += bi;
  br = sr + ti;
  bi = si - tr;
  cr = dr;
  ci = di;
  dr = sr - ti;
  di = si + tr;
}

template <int R, class V>
PYRECON_INLINE void dft(V* re, V* im) {
  using T = decltype(re[0][0] + re[0][0]);
  if constexpr (R == 2) {
    dft2(re[0], im[0], re[1], im[1]);
  } else if constexpr (R == 3) {
    const T h = T(0.866025403784438646763723170752936183L);
    const V sr = re[1] + re[2], si = im[1] + im[2], dr = h * (re[1] - re[2]), di = h * (im[1] - im[2]);
    const V tr = re[0] - T(0.5) * sr, ti = im[0] - T(0.5) * si;
    re[0] += sr;
    im[0] += si;
    re[1] = tr + di;
    im[1] = ti - dr;
    re[2] = tr - di;
    im[2] = ti + dr;
  } else if constexpr (R == 4) {
    dft4(re[0], im[0], re[1], im[1], re[2], im[2], re[3], im[3]);
  } else if constexpr (R == 5) {
    const T c1 = T(0.309016994374947424102293417182819059L), c2 = T(-0.809016994374947424102293417182819059L);
    const T s1 = T(0.951056516295153572116439333379382143L), s2 = T(0.587785252292473129168705954639072769L);
    const V pr = re[1] + re[4], pi = im[1] + im[4], mr = re[1] - re[4], mi = im[1] - im[4];
    const V qr = re[2] + re[3], qi = im[2] + im[3], nr = re[2] - re[3], ni = im[2] - im[3];
    const V xr = re[0] + c1 * pr + c2 * qr, xi = im[0] + c1 * pi + c2 * qi;
    const V yr = re[0] + c2 * pr + c1 * qr, yi = im[0] + c2 * pi + c1 * qi;
    const V ur = s1 * mr + s2 * nr, ui = s1 * mi + s2 * ni, vr = s2 * mr - s1 * nr, vi = s2 * mi - s1 * ni;
    re[0] += pr + qr;
    im[0] += pi + qi;
    re[1] = xr + ui;
    im[1] = xi - ur;
    re[4] = xr - ui;
    im[4] = xi + ur;
    re[2] = yr + vi;
    im[2] = yi - vr;
    re[3] = yr - vi;
    im[3] = yi + vr;
  } else {
    static_assert(R == 8);
    const T h = T(0.707106781186547524400844362104849039L);
    dft4(re[0], im[0], re[2], im[2], re[4], im[4], re[6], im[6]);
    dft4(re[1], im[1], re[3], im[3], re[5], im[5], re[7], im[7]);
    const V ar = h * (re[3] + im[3]), ai = h * (im[3] - re[3]);  // times exp(-i pi / 4)
    const V br = im[5], bi = -re[5];                             // times -i
    const V cr = h * (im[7] - re[7]), ci = -h * (re[7] + im[7]);
    const V zr = re[1], zi = im[1];
    const V er[4] = {re[0], re[2], re[4], re[6]}, ei[4] = {im[0], im[2], im[4], im[6]};
    re[0] = er[0] + zr;
    im[0] = ei[0] + zi;
    re[4] = er[0] - zr;
    im[4] = ei[0] - zi;
    re[1] = er[1] + ar;
    im[1] = ei[1] + ai;
    re[5] = er[1] - ar;
    im[5] = ei[1] - ai;
    re[2] = er[2] + br;
    im[2] = ei[2] + bi;
    re[6] = er[2] - br;
    im[6] = ei[2] - bi;
    re[3] = er[3] + cr;
    im[3] = ei[3] + ci;
    re[7] = er[3] - cr;
    im[7] = ei[3] - ci;
  }
}

// Odd prime r. Sums and differences of mirrored inputs make X_k and X_(r-k) from the same real products; K outputs
// share each load (three: 12 accumulators).
template <int K, class T>
PYRECON_INLINE void dft_prime_rows(Vec<T>* re, Vec<T>* im, const Vec<T>* sums, int r, int k, const T* roots, Vec<T> x0r,
                                   Vec<T> x0i) {
  const int half = (r - 1) / 2;
  Vec<T> ar[K], ai[K], br[K], bi[K];
  for (int i = 0; i < K; ++i) {
    ar[i] = x0r;
    ai[i] = x0i;
    br[i] = bi[i] = Vec<T>{};
  }
  for (int j = 0; j < half; ++j) {
    const Vec<T>* s = sums + 4 * j;
    const Vec<T> pr = s[0], pi = s[1], mr = s[2], mi = s[3];
    for (int i = 0; i < K; ++i) {
      const T* c = roots + 2 * ((k - 1 + i) * half + j);
      const Vec<T> cos = splat(c[0]), sin = splat(c[1]);
      ar[i] += cos * pr;
      ai[i] += cos * pi;
      br[i] += sin * mr;
      bi[i] += sin * mi;
    }
  }
  for (int i = 0; i < K; ++i) {
    re[k + i] = ar[i] + bi[i];
    im[k + i] = ai[i] - br[i];
    re[r - k - i] = ar[i] - bi[i];
    im[r - k - i] = ai[i] + br[i];
  }
}

template <class T>
PYRECON_INLINE void dft_prime(Vec<T>* re, Vec<T>* im, int r, const T* roots) {
  const int half = (r - 1) / 2;
  Vec<T> sums[4 * (FftPlan::max_prime / 2)];
  const Vec<T> x0r = re[0], x0i = im[0];
  for (int j = 0; j < half; ++j) {
    Vec<T>* s = sums + 4 * j;
    s[0] = re[j + 1] + re[r - 1 - j];
    s[1] = im[j + 1] + im[r - 1 - j];
    s[2] = re[j + 1] - re[r - 1 - j];
    s[3] = im[j + 1] - im[r - 1 - j];
    re[0] += s[0];
    im[0] += s[1];
  }
  int k = 1;
  for (; k + 3 <= half + 1; k += 3) dft_prime_rows<3>(re, im, sums, r, k, roots, x0r, x0i);
  if (half - k == 1) dft_prime_rows<2>(re, im, sums, r, k, roots, x0r, x0i);
  if (half - k == 0) dft_prime_rows<1>(re, im, sums, r, k, roots, x0r, x0i);
}

// --- stages ----------------------------------------------------------------------------------------------------------
// Where a stage reads and writes by default: the signal itself. Other readers and writers look the same.
template <class T>
struct FftBuffer {
  T* x;
  PYRECON_MEMBER void read(int64_t i, Vec<T>& re, Vec<T>& im) const {
    re = load(x + 2 * lanes<T> * i);
    im = load(x + 2 * lanes<T> * i + lanes<T>);
  }
  PYRECON_MEMBER void write(int64_t i, Vec<T> re, Vec<T> im) const {
    store<T>(x + 2 * lanes<T> * i, re);
    store<T>(x + 2 * lanes<T> * i + lanes<T>, im);
  }
};

// A factor for every position: one number, or one number per lane.
template <class T>
struct FftWeights {
  const T* w;
  bool per_lane;
  PYRECON_MEMBER Vec<T> at(int64_t p) const { return per_lane ? load(w + lanes<T> * p) : splat(w[p]); }
};

// One stage on `blocks` consecutive blocks of r * m elements.
template <class T>
struct FftStage {
  int64_t blocks, m;
  int r;
  const T *twiddles, *roots;
};

template <int R, class T>
PYRECON_INLINE void dft_any(Vec<T>* re, Vec<T>* im, const FftStage<T>& stage) {
  if constexpr (R == 0)
    dft_prime(re, im, stage.r, stage.roots);
  else
    dft<R>(re, im);
}

template <class T>
PYRECON_INLINE void rotate(Vec<T>& re, Vec<T>& im, const T* w) {
  const Vec<T> wr = splat(w[0]), wi = splat(w[1]), t = re * wr - im * wi;
  im = re * wi + im * wr;
  re = t;
}

// R = 0 stands for an odd prime known at run time.
template <int R>
inline constexpr int fft_size = R == 0 ? FftPlan::max_prime : R;

// Decimation in frequency: transform over q, then twiddle.
template <int R, bool Twiddled, class T, class Reader>
__attribute__((noinline)) void fft_dif_stage(const FftStage<T>& stage, const Reader& from, T* x) {
  const int r = R == 0 ? stage.r : R;
  const int64_t m = stage.m;
  const FftBuffer<T> to{x};
  Vec<T> re[fft_size<R>], im[fft_size<R>];
  for (int64_t start = 0; start < stage.blocks * r * m; start += r * m) {
    const T* w = stage.twiddles;
    for (int64_t j = start; j < start + m; ++j) {
#pragma GCC unroll 8
      for (int q = 0; q < r; ++q) from.read(j + q * m, re[q], im[q]);
      dft_any<R>(re, im, stage);
      to.write(j, re[0], im[0]);
#pragma GCC unroll 8
      for (int q = 1; q < r; ++q, w += 2) {
        if constexpr (Twiddled) rotate(re[q], im[q], w);
        to.write(j + q * m, re[q], im[q]);
      }
    }
  }
}

// Decimation in time, inverse: conjugate twiddle, then inverse transform over q; re and im are exchanged throughout.
template <int R, bool Twiddled, class T, class Writer>
__attribute__((noinline)) void fft_dit_stage(const FftStage<T>& stage, T* x, const Writer& to) {
  const int r = R == 0 ? stage.r : R;
  const int64_t m = stage.m;
  const FftBuffer<T> from{x};
  Vec<T> re[fft_size<R>], im[fft_size<R>];
  for (int64_t start = 0; start < stage.blocks * r * m; start += r * m) {
    const T* w = stage.twiddles;
    for (int64_t j = start; j < start + m; ++j) {
      from.read(j, re[0], im[0]);
#pragma GCC unroll 8
      for (int q = 1; q < r; ++q, w += 2) {
        from.read(j + q * m, re[q], im[q]);
        if constexpr (Twiddled) rotate(im[q], re[q], w);
      }
      dft_any<R>(im, re, stage);
#pragma GCC unroll 8
      for (int q = 0; q < r; ++q) to.write(j + q * m, re[q], im[q]);
    }
  }
}

// The last stage forward, a factor, and the first stage back, on blocks of r elements.
template <int R, class T>
__attribute__((noinline)) void fft_middle_stage(const FftStage<T>& stage, T* x, const FftWeights<T>& weights) {
  const int r = R == 0 ? stage.r : R;
  const FftBuffer<T> signal{x};
  Vec<T> re[fft_size<R>], im[fft_size<R>];
  for (int64_t start = 0; start < stage.blocks * r; start += r) {
#pragma GCC unroll 8
    for (int q = 0; q < r; ++q) signal.read(start + q, re[q], im[q]);
    dft_any<R>(re, im, stage);
#pragma GCC unroll 8
    for (int q = 0; q < r; ++q) {
      const Vec<T> w = weights.at(start + q);
      re[q] *= w;
      im[q] *= w;
    }
    dft_any<R>(im, re, stage);
#pragma GCC unroll 8
    for (int q = 0; q < r; ++q) signal.write(start + q, re[q], im[q]);
  }
}

#define PYRECON_FFT_RADIX(r, call) \
  switch (r) {                     \
    case 2:                        \
      return call(2);              \
    case 3:                        \
      return call(3);              \
    case 4:                        \
      return call(4);              \
    case 5:                        \
      return call(5);              \
    case 8:                        \
      return call(8);              \
    default:                       \
      return call(0);              \
  }

template <class T, class Reader>
PYRECON_INLINE void fft_dif_step(const FftStage<T>& stage, const Reader& from, T* x) {
#define PYRECON_CALL(R) (stage.m > 1 ? fft_dif_stage<R, true>(stage, from, x) : fft_dif_stage<R, false>(stage, from, x))
  PYRECON_FFT_RADIX(stage.r, PYRECON_CALL)
#undef PYRECON_CALL
}

template <class T, class Writer>
PYRECON_INLINE void fft_dit_step(const FftStage<T>& stage, T* x, const Writer& to) {
#define PYRECON_CALL(R) (stage.m > 1 ? fft_dit_stage<R, true>(stage, x, to) : fft_dit_stage<R, false>(stage, x, to))
  PYRECON_FFT_RADIX(stage.r, PYRECON_CALL)
#undef PYRECON_CALL
}

template <class T>
PYRECON_INLINE void fft_middle_step(const FftStage<T>& stage, T* x, const FftWeights<T>& weights) {
#define PYRECON_CALL(R) fft_middle_stage<R>(stage, x, weights)
  PYRECON_FFT_RADIX(stage.r, PYRECON_CALL)
#undef PYRECON_CALL
}

// Stage s of a piece of `length` elements.
template <class T>
PYRECON_INLINE FftStage<T> fft_stage(const FftPlan& plan, int s, int64_t length) {
  return {length / (plan.radix[s] * plan.m[s]), plan.m[s], plan.radix[s], plan.table<T>(plan.twiddles[s]),
          plan.table<T>(plan.roots[s])};
}

// --- transforms ------------------------------------------------------------------------------------------------------
// After the first stage the signal falls into pieces that are finished one by one, in the first-level cache.

// Forward: x[p] holds frequency(p) of what `from` reads.
template <class T, class Reader>
PYRECON_INLINE void fft_forward(const FftPlan& plan, const Reader& from, T* x) {
  if (plan.stages == 0) {
    Vec<T> re, im;
    from.read(0, re, im);
    return FftBuffer<T>{x}.write(0, re, im);
  }
  fft_dif_step(fft_stage<T>(plan, 0, plan.n), from, x);
  const int64_t piece = plan.m[0];
  for (int64_t p = 0; p < plan.n; p += piece) {
    T* part = x + 2 * lanes<T> * p;
    for (int s = 1; s < plan.stages; ++s) fft_dif_step(fft_stage<T>(plan, s, piece), FftBuffer<T>{part}, part);
  }
}

// Inverse, unscaled: x[p] holds frequency(p); `to` gets the signal, x is used up.
template <class T, class Writer>
PYRECON_INLINE void fft_inverse(const FftPlan& plan, T* x, const Writer& to) {
  if (plan.stages == 0) {
    Vec<T> re, im;
    FftBuffer<T>{x}.read(0, re, im);
    return to.write(0, re, im);
  }
  const int64_t piece = plan.m[0];
  for (int64_t p = 0; p < plan.n; p += piece) {
    T* part = x + 2 * lanes<T> * p;
    for (int s = plan.stages - 1; s > 0; --s) fft_dit_step(fft_stage<T>(plan, s, piece), part, FftBuffer<T>{part});
  }
  fft_dit_step(fft_stage<T>(plan, 0, plan.n), x, to);
}

// Forward, times weights by position, inverse, unscaled; x is room for the signal.
template <class T, class Reader, class Writer>
PYRECON_INLINE void fft_filter(const FftPlan& plan, const Reader& from, T* x, FftWeights<T> weights, const Writer& to) {
  const int last = plan.stages - 1;
  if (last < 1) {  // too short for a first stage and another in the middle
    Vec<T> re, im;
    for (int64_t i = 0; i < plan.n; ++i) {
      from.read(i, re, im);
      FftBuffer<T>{x}.write(i, re, im);
    }
    if (last == 0) fft_middle_step(fft_stage<T>(plan, 0, plan.n), x, weights);
    for (int64_t i = 0; i < plan.n; ++i) {
      FftBuffer<T>{x}.read(i, re, im);
      const Vec<T> w = last == 0 ? splat(T(1)) : weights.at(i);
      to.write(i, re * w, im * w);
    }
    return;
  }
  fft_dif_step(fft_stage<T>(plan, 0, plan.n), from, x);
  const int64_t piece = plan.m[0];
  for (int64_t p = 0; p < plan.n; p += piece) {
    T* part = x + 2 * lanes<T> * p;
    const FftWeights<T> here{weights.w + (weights.per_lane ? lanes<T> : 1) * p, weights.per_lane};
    for (int s = 1; s < last; ++s) fft_dif_step(fft_stage<T>(plan, s, piece), FftBuffer<T>{part}, part);
    fft_middle_step(fft_stage<T>(plan, last, piece), part, here);
    for (int s = last - 1; s > 0; --s) fft_dit_step(fft_stage<T>(plan, s, piece), part, FftBuffer<T>{part});
  }
  fft_dit_step(fft_stage<T>(plan, 0, plan.n), x, to);
}

}  // namespace pyrecon::PYRECON_ISA
