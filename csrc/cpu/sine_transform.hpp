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
#include "cpu/parallel.hpp"

namespace pyrecon::PYRECON_ISA {

// --- plan: one block of memory, nodes and tables as offsets from its start -------------------------------------------
struct SineNode {
  enum Kind : int32_t { dense, split, prime };
  int32_t kind, n;                            // dense: n x n matrix; else N
  int32_t radix, m;                           // split: N = radix * m; prime: m is the length of the convolution
  int64_t fft, table, in, out, child, roots;  // offsets; roots: of an odd radix without butterfly of its own
};

struct SinePlan {
  int64_t n, levels, slots;  // N; how often N is halved; working memory in slots, besides two lines of N
  int64_t half[32];          // the node of each halving
  int64_t odd;               // the node of what remains, 0 for nothing
  int64_t eigenvalues;       // 2 - 2 cos(pi k / N), k = 1..N-1, doubles
  int64_t bytes;

  template <class T>
  const T* at(int64_t offset) const {
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(this) + offset);
  }
};

// Vector instructions, roughly: arithmetic, twiddles, loads and stores.
inline double fft_cost(int64_t n) {
  int32_t radix[FftPlan::max_stages];
  const int stages = fft_factor(n, radix);
  if (stages < 0) return 1e30;
  double sum = 0;
  for (int s = 0; s < stages; ++s) {
    const double r = radix[s];
    sum += n * (r == 2 ? 12 : r == 3 ? 15 : r == 4 ? 14 : r == 5 ? 18 : r == 8 ? 18 : (r - 1) * (r - 1) / r + 16);
  }
  return 1.3 * sum;  // shorter loops than a matrix product has
}

// Length of a Fourier transform that does a convolution of length m: m itself, or a smooth one from 2 m - 1 on.
inline int64_t convolution_length(int64_t m) {
  int64_t best = m;
  for (int64_t n = 2 * m - 1; n <= 2 * m + m / 4; ++n)
    if (fft_cost(n) < fft_cost(best)) best = n;
  return best;
}

inline int64_t least_factor(int64_t n) {
  for (int64_t p = 2; p * p <= n; ++p)
    if (n % p == 0) return p;
  return n;
}

struct OddChoice {
  SineNode::Kind kind;
  int64_t radix, m;
  double cost;
};

inline OddChoice choose_odd(int64_t n) {
  const double half = (n - 1) / 2;
  OddChoice best{SineNode::dense, 0, 0, 2 * half * half + 4 * half};
  int64_t rest = n, p = least_factor(n);
  if (p == n) {
    const int64_t m = convolution_length((n - 1) / 2);
    const double cost = 2 * fft_cost(m) + 26.0 * m;
    if (cost < best.cost) best = {SineNode::prime, 0, m, cost};
    return best;
  }
  for (; rest > 1; p = least_factor(rest)) {
    while (rest % p == 0) rest /= p;
    const int64_t m = n / p;
    if (p > FftPlan::max_prime) continue;
    const double combine = (m + 1) / 2 * (fft_cost(p) + 8.0 * p);
    const double cost = (p - 1) / 2 * (fft_cost(m) + 4.0 * m) + choose_odd(m).cost + combine;
    if (cost < best.cost) best = {SineNode::split, p, m, cost};
  }
  return best;
}

// Cost of the sums of an even N = 2 h by Fourier transform, and dense.
inline double half_fft_cost(int64_t h) { return fft_cost(h) + 26.0 * h; }
inline double half_dense_cost(int64_t h) { return 2.0 * h * h + 4.0 * h; }

inline double sine_transform_cost(int64_t n) {
  double sum = 8.0 * n;
  for (; n % 2 == 0; n /= 2) {
    const double a = half_fft_cost(n / 2), b = half_dense_cost(n / 2);
    sum += 8.0 * n / 2 + (a < b ? a : b);
  }
  return n > 1 ? sum + 2 * choose_odd(n).cost : sum;
}

// Writes a plan, or only counts its bytes where there is no memory yet: the same code, run twice.
template <class T>
class SinePlanner {
 public:
  explicit SinePlanner(void* memory) : base_(static_cast<char*>(memory)) {}

  int64_t plan(int64_t n) {
    SinePlan plan{};
    take<SinePlan>(1);
    plan.n = n;
    plan.eigenvalues = take<double>(n - 1);
    for (int64_t k = 1; base_ && k < n; ++k) {
      const long double s = sine(k, 4 * n);
      put<double>(plan.eigenvalues)[k - 1] = static_cast<double>(4 * s * s);
    }
    int64_t rest = n;
    for (; rest % 2 == 0; rest /= 2) plan.half[plan.levels++] = plan_half(rest / 2);
    if (rest > 1) plan.odd = plan_odd(rest);
    plan.slots = most_slots_;
    plan.bytes = end_;
    if (base_) *put<SinePlan>(0) = plan;
    return end_;
  }

 private:
  char* base_;
  int64_t end_ = 0, most_slots_ = 0;

  template <class U>
  int64_t take(int64_t count) {
    const int64_t at = end_;
    end_ = (end_ + count * static_cast<int64_t>(sizeof(U)) + 63) / 64 * 64;
    return at;
  }
  template <class U>
  U* put(int64_t offset) const {
    return reinterpret_cast<U*>(base_ + offset);
  }
  int64_t keep(const SineNode& node) {
    const int64_t at = take<SineNode>(1);
    if (base_) *put<SineNode>(at) = node;
    return at;
  }
  void needs(int64_t slots) { most_slots_ = slots > most_slots_ ? slots : most_slots_; }

  static long double sine(int64_t k, int64_t of) {  // sin(2 pi k / of)
    return __builtin_sinl(6.283185307179586476925286766559L * (k % of) / of);
  }
  static long double cosine(int64_t k, int64_t of) {
    return __builtin_cosl(6.283185307179586476925286766559L * (k % of) / of);
  }

  int64_t plan_fft(int64_t n) {
    const int64_t at = take<char>(fft_plan<T>(n, nullptr));
    if (base_) fft_plan<T>(n, put<void>(at));
    return at;
  }

  // U_k = sum_(j=1..h) s_j sin(pi j (2 k + 1) / (2 h)), k = 0..h-1
  int64_t plan_half(int64_t h) {
    SineNode node{};
    node.n = static_cast<int32_t>(h);
    if (half_fft_cost(h) < half_dense_cost(h)) {
      node.kind = SineNode::split;
      node.fft = plan_fft(h);
      node.table = take<T>(2 * h);
      for (int64_t i = 0; base_ && i < h; ++i) {  // exp(i pi i / (2 h)) / 2, and 1 for i = 0
        put<T>(node.table)[2 * i] = static_cast<T>(i ? cosine(i, 4 * h) / 2 : 1);
        put<T>(node.table)[2 * i + 1] = static_cast<T>(sine(i, 4 * h) / 2);
      }
      needs(h);
    } else {
      node.kind = SineNode::dense;
      node.table = take<T>(h * h);
      for (int64_t k = 0; base_ && k < h; ++k)
        for (int64_t j = 1; j <= h; ++j)
          put<T>(node.table)[k * h + j - 1] = static_cast<T>(sine(j * (2 * k + 1), 4 * h));
    }
    return keep(node);
  }

  int64_t plan_odd(int64_t n, int64_t slots = 0) {
    const OddChoice choice = choose_odd(n);
    const int64_t half = (n - 1) / 2;
    SineNode node{};
    node.kind = choice.kind;
    node.n = static_cast<int32_t>(choice.kind == SineNode::dense ? half : n);
    node.radix = static_cast<int32_t>(choice.radix);
    node.m = static_cast<int32_t>(choice.m);
    if (choice.kind == SineNode::dense) {
      node.table = take<T>(half * half);
      for (int64_t k = 1; base_ && k <= half; ++k)
        for (int64_t j = 1; j <= half; ++j) put<T>(node.table)[(k - 1) * half + j - 1] = static_cast<T>(sine(j * k, n));
      needs(slots);
    } else if (choice.kind == SineNode::split) {
      plan_split(node, n);
      node.child = plan_odd(choice.m, slots + half);
    } else {
      plan_prime(node, n);
      needs(slots + choice.m);
    }
    return keep(node);
  }

  void plan_split(SineNode& node, int64_t n) {
    const int64_t r = node.radix, m = node.m, pairs = (r - 1) / 2;
    node.fft = plan_fft(m);
    node.table = take<T>((m + 1) * pairs);  // i/2 exp(-2 pi i q k / N) for k = 0..(m-1)/2, q = 1..pairs
    node.roots = take<T>(2 * pairs * pairs);
    if (!base_) return;
    for (int64_t k = 0, at = 0; k <= (m - 1) / 2; ++k)
      for (int64_t q = 1; q <= pairs; ++q, at += 2) {
        put<T>(node.table)[at] = static_cast<T>(sine(q * k, n) / 2);
        put<T>(node.table)[at + 1] = static_cast<T>(cosine(q * k, n) / 2);
      }
    for (int64_t k = 1, at = 0; k <= pairs; ++k)
      for (int64_t j = 1; j <= pairs; ++j, at += 2) {
        put<T>(node.roots)[at] = static_cast<T>(cosine(j * k, r));
        put<T>(node.roots)[at + 1] = static_cast<T>(sine(j * k, r));
      }
  }

  // X(g^-b) = sum_a z(g^a) h(b - a) with h(c) = sin(2 pi g^-c / N), and h(c + half) = -h(c)
  void plan_prime(SineNode& node, int64_t n) {
    const int64_t half = (n - 1) / 2, length = node.m;
    const bool twisted = length == half;
    node.fft = plan_fft(length);
    node.in = take<int32_t>(half);
    node.out = take<int32_t>(half);
    node.table = take<T>(2 * length);  // the spectrum of h, in the order of the Fourier transform, over its length
    node.roots = take<T>(4 * half);    // factors of inputs, then of outputs
    if (!base_) return;
    int64_t g = 2;
    for (; order(g, n) != n - 1;) ++g;
    int64_t inverse = 1;
    for (int64_t i = 0; i < n - 2; ++i) inverse = inverse * g % n;
    int32_t *in = put<int32_t>(node.in), *out = put<int32_t>(node.out);
    T *to = put<T>(node.roots), *back = to + 2 * half;
    for (int64_t a = 0, j = 1, k = 1; a < half; ++a, j = j * g % n, k = k * inverse % n) {
      const long double re = twisted ? cosine(a, 2 * half) : 1, im = twisted ? sine(a, 2 * half) : 0;
      const int sj = j > half ? -1 : 1, sk = k > half ? -1 : 1;
      in[a] = static_cast<int32_t>(j > half ? n - j : j);
      out[a] = static_cast<int32_t>(k > half ? n - k : k);
      to[2 * a] = static_cast<T>(sj * re);
      to[2 * a + 1] = static_cast<T>(-sj * im);
      back[2 * a] = static_cast<T>(sk * re);
      back[2 * a + 1] = static_cast<T>(sk * im);
    }
    // h with its twist, then its transform by definition: some milliseconds, once for a size
    const Scratch<double> h(2 * length), root(2 * length);
    for (int64_t c = 0; c < length; ++c) {
      h[2 * c] = h[2 * c + 1] = 0;
      root[2 * c] = static_cast<double>(cosine(c, length));
      root[2 * c + 1] = static_cast<double>(sine(c, length));
    }
    for (int64_t c = 0, k = 1; c < half; ++c, k = k * inverse % n) {
      const long double value = sine(k, n);
      h[2 * c] = static_cast<double>(twisted ? value * cosine(c, 2 * half) : value);
      h[2 * c + 1] = static_cast<double>(twisted ? -value * sine(c, 2 * half) : 0);
      if (!twisted && c > 0) h[2 * (length - half + c)] = static_cast<double>(-value);  // h(c - half)
    }
    const int32_t* frequency = put<FftPlan>(node.fft)->frequencies();
    T* spectrum = put<T>(node.table);
    for (int64_t p = 0; p < length; ++p) {
      double re = 0, im = 0;
      for (int64_t c = 0, at = 0; c < length; ++c) {
        re += h[2 * c] * root[2 * at] + h[2 * c + 1] * root[2 * at + 1];
        im += h[2 * c + 1] * root[2 * at] - h[2 * c] * root[2 * at + 1];
        at += frequency[p];
        if (at >= length) at -= length;
      }
      spectrum[2 * p] = static_cast<T>(re / length);
      spectrum[2 * p + 1] = static_cast<T>(im / length);
    }
  }

  static int64_t order(int64_t g, int64_t n) {
    int64_t count = 1;
    for (int64_t power = g % n; power != 1; power = power * g % n) ++count;
    return count;
  }
};

// --- execution -------------------------------------------------------------------------------------------------------
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
