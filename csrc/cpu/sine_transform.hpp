// Discrete sine transform of type I on split vectors: X_k = sum_j x_j sin(pi j k / N), j, k = 1..N-1, unscaled.
//
// Slot j of a signal is the pair (re, im) of vectors at 2 * lanes * j, as in fft.hpp: 2 * lanes real signals at once,
// in whatever arrangement, for everything here is linear with real coefficients.
//
// Sums and differences of mirrored inputs halve the work at once. For odd N both halves are the same transform,
// Z_k = sum_j z_j sin(2 pi j k / N) over j, k = 1..(N-1)/2, the Fourier transform of an odd signal ("odd" below):
//   dense   a matrix product;
//   split   N = r m: the r - 1 subsequences that are not odd are mirror images of each other in pairs, so half of their
//           Fourier transforms of length m do; one more, odd, of length m; then transforms of length r over them;
//   prime   N prime, Rader: in the order of powers of a generator a convolution, skew-cyclic of length (N-1)/2 because
//           half the powers are negatives of the other half. Of that very length by a twist, or padded.
// For even N the differences are a DST of half the size, and the sums a cosine transform of type III of half the size,
// by one Fourier transform (Makhoul 1980), or a matrix product.
// The plan takes what costs least. A size N with a prime factor that fft.hpp does not take is dense at that point.
#pragma once

#include "cpu/fft.hpp"
#include "cpu/sine_plan.hpp"

namespace pyrecon::PYRECON_ISA {

// Slots `step` apart, counted from p: where a transform reads or writes, forwards or backwards.
template <class T>
struct Slots {
  T* p;
  int64_t step;
  PYRECON_MEMBER T* at(int64_t j) const { return p + 2 * lanes<T> * step * j; }
  PYRECON_MEMBER void get(int64_t j, Vec<T>& re, Vec<T>& im) const {
    re = load(at(j));
    im = load(at(j) + lanes<T>);
  }
  PYRECON_MEMBER void put(int64_t j, Vec<T> re, Vec<T> im) const {
    store<T>(at(j), re);
    store<T>(at(j) + lanes<T>, im);
  }
  PYRECON_MEMBER Slots every(int64_t r) const { return {p, step * r}; }
  PYRECON_MEMBER Slots from(int64_t j) const { return {at(j), step}; }
  PYRECON_MEMBER Slots backwards_from(int64_t j) const { return {at(j), -step}; }
};

// K rows of to_k = sum_j matrix[k][j] from_j: 12 or 24 accumulators.
template <int K, class T>
PYRECON_INLINE void sine_rows(const T* matrix, int64_t n, Slots<T> from, Slots<T> to) {
  Vec<T> re[K] = {}, im[K] = {};
  for (int64_t j = 0; j < n; ++j) {
    Vec<T> xr, xi;
    from.get(j, xr, xi);
    for (int i = 0; i < K; ++i) {
      const Vec<T> c = splat(matrix[i * n + j]);
      re[i] += c * xr;
      im[i] += c * xi;
    }
  }
  for (int i = 0; i < K; ++i) to.put(i, re[i], im[i]);
}

template <class T>
__attribute__((noinline)) void sine_dense(const T* matrix, int64_t n, Slots<T> from, Slots<T> to) {
  constexpr int block = vector_registers == 32 ? 12 : 6;
  int64_t k = 0;
  for (; k + block <= n; k += block) sine_rows<block>(matrix + k * n, n, from, to.from(k));
  for (; k + 2 <= n; k += 2) sine_rows<2>(matrix + k * n, n, from, to.from(k));
  if (k < n) sine_rows<1>(matrix + k * n, n, from, to.from(k));
}

template <class T>
PYRECON_INLINE void times(Vec<T>& re, Vec<T>& im, Vec<T> wr, Vec<T> wi) {
  const Vec<T> t = re * wr - im * wi;
  im = re * wi + im * wr;
  re = t;
}

// Subsequence q of every r-th number of an odd signal of period N.
template <class T>
struct ReadOdd {
  Slots<T> from;
  int64_t n, r, q;
  PYRECON_MEMBER void read(int64_t t, Vec<T>& re, Vec<T>& im) const {
    const int64_t j = r * t + q;
    const bool mirrored = 2 * j > n;
    from.get(mirrored ? n - j : j, re, im);
    if (mirrored) {
      re = -re;
      im = -im;
    }
  }
};

template <class T>
void sine_odd(const SinePlan& plan, int64_t offset, Slots<T> from, Slots<T> to, T* room);

// Over the subsequences: Z_(k + m l) = sum_q b_q exp(-2 pi i q l / r) with b_0 = Z'_k and
// b_q, b_(r-q) = i/2 exp(-2 pi i q k / N) F_q(k) and its conjugate twiddle times F_q(-k).
template <int R, class T>
__attribute__((noinline)) void sine_combine(const SinePlan& plan, const SineNode& node, Slots<T> first, const T* room,
                                            Slots<T> to) {
  const int r = R ? R : node.radix, pairs = (r - 1) / 2;
  const int64_t n = node.n, m = node.m, half = (n - 1) / 2;
  const int32_t* position = plan.at<FftPlan>(node.fft)->positions();
  const FftStage<T> stage{1, 1, r, nullptr, plan.at<T>(node.roots)};
  const T* w = plan.at<T>(node.table);
  Vec<T> re[fft_size<R>], im[fft_size<R>];
  for (int64_t k = 0; k <= (m - 1) / 2; ++k) {
    re[0] = im[0] = Vec<T>{};
    if (k) first.get(k, re[0], im[0]);
    for (int q = 1; q <= pairs; ++q, w += 2) {
      const FftBuffer<T> f{const_cast<T*>(room) + 2 * lanes<T> * m * (q - 1)};
      f.read(position[k], re[q], im[q]);
      f.read(position[k ? m - k : 0], re[r - q], im[r - q]);
      const Vec<T> wr = splat(w[0]), wi = splat(w[1]);
      times<T>(re[q], im[q], wr, wi);
      times<T>(re[r - q], im[r - q], wr, -wi);
    }
    dft_any<R>(re, im, stage);
    for (int l = k ? 0 : 1; l < (k ? r : pairs + 1); ++l) {
      const int64_t at = k + m * l;
      if (at > half)
        to.put(n - at, -re[l], -im[l]);
      else
        to.put(at, re[l], im[l]);
    }
  }
}

template <class T>
PYRECON_INLINE void sine_split(const SinePlan& plan, const SineNode& node, Slots<T> from, Slots<T> to, T* room) {
  const int64_t r = node.radix, m = node.m, pairs = (r - 1) / 2;
  const FftPlan& fft = *plan.at<FftPlan>(node.fft);
  for (int64_t q = 1; q <= pairs; ++q)
    fft_forward(fft, ReadOdd<T>{from, node.n, r, q}, room + 2 * lanes<T> * m * (q - 1));
  // The odd one's result, m / 2 slots, counted from 1, and what it needs.
  const Slots<T> first{room + 2 * lanes<T> * (m * pairs - 1), 1};
  sine_odd(plan, node.child, from.every(r), first, first.at((m + 1) / 2));
  if (r == 3)
    sine_combine<3>(plan, node, first, room, to);
  else if (r == 5)
    sine_combine<5>(plan, node, first, room, to);
  else
    sine_combine<0>(plan, node, first, room, to);
}

template <class T>
struct ReadPowers {
  Slots<T> from;
  const int32_t* index;
  const T* factor;
  int64_t count;
  PYRECON_MEMBER void read(int64_t a, Vec<T>& re, Vec<T>& im) const {
    re = im = Vec<T>{};
    if (a >= count) return;
    from.get(index[a], re, im);
    times<T>(re, im, splat(factor[2 * a]), splat(factor[2 * a + 1]));
  }
};

template <class T>
struct WritePowers {
  Slots<T> to;
  const int32_t* index;
  const T* factor;
  int64_t count;
  PYRECON_MEMBER void write(int64_t b, Vec<T> re, Vec<T> im) const {
    if (b >= count) return;
    times<T>(re, im, splat(factor[2 * b]), splat(factor[2 * b + 1]));
    to.put(index[b], re, im);
  }
};

template <class T>
PYRECON_INLINE void sine_prime(const SinePlan& plan, const SineNode& node, Slots<T> from, Slots<T> to, T* room) {
  const FftPlan& fft = *plan.at<FftPlan>(node.fft);
  const int64_t half = (node.n - 1) / 2;
  const T *factor = plan.at<T>(node.roots), *spectrum = plan.at<T>(node.table);
  fft_forward(fft, ReadPowers<T>{from, plan.at<int32_t>(node.in), factor, half}, room);
  for (int64_t p = 0; p < node.m; ++p) {
    Vec<T> re, im;
    FftBuffer<T>{room}.read(p, re, im);
    times<T>(re, im, splat(spectrum[2 * p]), splat(spectrum[2 * p + 1]));
    FftBuffer<T>{room}.write(p, re, im);
  }
  fft_inverse(fft, room, WritePowers<T>{to, plan.at<int32_t>(node.out), factor + 2 * half, half});
}

// Z_k = sum_j z_j sin(2 pi j k / N), slots 1..(N-1)/2 of `from` and `to`.
template <class T>
void sine_odd(const SinePlan& plan, int64_t offset, Slots<T> from, Slots<T> to, T* room) {
  const SineNode& node = *plan.at<SineNode>(offset);
  if (node.kind == SineNode::dense)
    sine_dense(plan.at<T>(node.table), node.n, from.from(1), to.from(1));
  else if (node.kind == SineNode::split)
    sine_split(plan, node, from, to, room);
  else
    sine_prime(plan, node, from, to, room);
}

template <class T>
struct ReadHalf {  // exp(i pi i / (2 h)) / 2 (s_(h-i) - i s_i), re and im exchanged: for an inverse transform
  Slots<T> s;
  const T* twiddle;
  int64_t h;
  PYRECON_MEMBER void read(int64_t i, Vec<T>& re, Vec<T>& im) const {
    Vec<T> ar, ai, br = {}, bi = {};
    s.get(h - i, ar, ai);
    if (i) s.get(i, br, bi);
    im = ar + bi;
    re = ai - br;
    times<T>(im, re, splat(twiddle[2 * i]), splat(twiddle[2 * i + 1]));
  }
};

// U_k, k = 0..h-1, from s_1..s_h
template <class T>
PYRECON_INLINE void sine_half(const SinePlan& plan, const SineNode& node, Slots<T> s, Slots<T> to, T* room) {
  const int64_t h = node.n;
  if (node.kind == SineNode::dense) return sine_dense(plan.at<T>(node.table), h, s.from(1), to);
  const FftPlan& fft = *plan.at<FftPlan>(node.fft);
  fft_forward(fft, ReadHalf<T>{s, plan.at<T>(node.table), h}, room);
  const int32_t* position = fft.positions();
  for (int64_t k = 0; k < h; ++k) {
    Vec<T> re, im;
    FftBuffer<T>{room}.read(position[k % 2 ? h - 1 - k / 2 : k / 2], im, re);
    if (k % 2)
      to.put(k, -re, -im);
    else
      to.put(k, re, im);
  }
}

// From slots 1..N-1 of `from`, which are used up, to those of `to`; room for plan.slots more.
template <class T>
void sine_transform(const SinePlan& plan, T* from_memory, T* to_memory, T* room) {
  const Slots<T> from{from_memory, 1};
  Slots<T> to{to_memory, 1};
  int64_t n = plan.n;
  for (int level = 0; n > 1; ++level) {
    const bool odd = n % 2;
    for (int64_t j = 1; 2 * j < n; ++j) {  // differences to the front, sums to the back
      Vec<T> ar, ai, br, bi;
      from.get(j, ar, ai);
      from.get(n - j, br, bi);
      from.put(j, ar - br, ai - bi);
      if (odd && j % 2 == 0)
        from.put(n - j, -ar - br, -ai - bi);
      else
        from.put(n - j, ar + br, ai + bi);
    }
    if (odd) {  // X_2k from the differences, X_(N-2k) from the sums, their signs alternating
      sine_odd(plan, plan.odd, from, to.every(2), room);
      sine_odd(plan, plan.odd, from.backwards_from(n), to.backwards_from(n).every(2), room);
      return;
    }
    sine_half(plan, *plan.at<SineNode>(plan.half[level]), from.backwards_from(n), to.from(1).every(2), room);
    to = to.every(2);
    n /= 2;
  }
}

}  // namespace pyrecon::PYRECON_ISA
