// The plan of a discrete sine transform: which of the ways of sine_transform.hpp a size takes, and their tables.
#pragma once

#include "cpu/fft.hpp"
#include "cpu/parallel.hpp"

namespace pyrecon::PYRECON_ISA {

// One block of memory, nodes and tables as offsets from its start.
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

}  // namespace pyrecon::PYRECON_ISA
