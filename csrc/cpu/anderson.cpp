#include "cpu/anderson.hpp"

#include <cmath>

#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"

namespace pyrecon::PYRECON_ISA {
namespace {

constexpr int64_t kMaxMemory = 32;
// 2 KiB of float32 per row: a block of all m rows of G stays in L1 while its products are summed, and a partial sum has
// few enough terms to keep the digits that one running float32 sum over 200,000 would lose.
constexpr int64_t kBlock = 512;

// totals[i] += <g, G_i> over one block, for rows 0..rows-1 of G.
template <class T>
PYRECON_INLINE void add_products(const T* g, const T* G, int64_t stride, int64_t rows, int64_t length, double* totals) {
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) {  // four rows share each load of g and hide the latency of the sums
    const T *a = G + row * stride, *b = a + stride, *c = b + stride, *d = c + stride;
    Vec<T> sa{}, sb{}, sc{}, sd{};
    int64_t i = 0;
    for (; i + lanes<T> <= length; i += lanes<T>) {
      const Vec<T> v = load(g + i);
      sa += v * load(a + i);
      sb += v * load(b + i);
      sc += v * load(c + i);
      sd += v * load(d + i);
    }
    T ta = sum<T>(sa), tb = sum<T>(sb), tc = sum<T>(sc), td = sum<T>(sd);
    for (; i < length; ++i) {
      ta += g[i] * a[i];
      tb += g[i] * b[i];
      tc += g[i] * c[i];
      td += g[i] * d[i];
    }
    totals[row] += ta;
    totals[row + 1] += tb;
    totals[row + 2] += tc;
    totals[row + 3] += td;
  }
  for (; row < rows; ++row) {
    const T* a = G + row * stride;
    Vec<T> s{};
    int64_t i = 0;
    for (; i + lanes<T> <= length; i += lanes<T>) s += load(g + i) * load(a + i);
    T t = sum<T>(s);
    for (; i < length; ++i) t += g[i] * a[i];
    totals[row] += t;
  }
}

// Weights a (k of them) from the k x k Gram matrix: (Gram + ridge I) alpha = 1, a = alpha / sum(alpha), by Cholesky in
// double. A matrix that is not positive definite in double (g = 0, or an overflow) leaves the newest iterate alone.
template <class T>
PYRECON_INLINE void weights(const T* gram, int64_t stride, int64_t k, int64_t newest, const AndersonOptions& options,
                            double* a) {
  double L[kMaxMemory * kMaxMemory];
  double trace = 0;
  for (int64_t i = 0; i < k; ++i) trace += gram[i * stride + i];
  const double shift = options.absolute_ridge ? options.ridge : options.ridge * trace / static_cast<double>(k);
  bool regular = true;
  for (int64_t i = 0; i < k && regular; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      double v = gram[i * stride + j] + (i == j ? shift : 0.0);
      for (int64_t l = 0; l < j; ++l) v -= L[i * kMaxMemory + l] * L[j * kMaxMemory + l];
      if (i == j) {
        regular = v > 0 && v < 1e300;
        L[i * kMaxMemory + i] = regular ? std::sqrt(v) : 1.0;
      } else {
        L[i * kMaxMemory + j] = v / L[j * kMaxMemory + j];
      }
    }
  double total = 0;
  if (regular) {
    for (int64_t i = 0; i < k; ++i) {
      double v = 1;
      for (int64_t l = 0; l < i; ++l) v -= L[i * kMaxMemory + l] * a[l];
      a[i] = v / L[i * kMaxMemory + i];
    }
    for (int64_t i = k - 1; i >= 0; --i) {
      double v = a[i];
      for (int64_t l = i + 1; l < k; ++l) v -= L[l * kMaxMemory + i] * a[l];
      a[i] = v / L[i * kMaxMemory + i];
      total += a[i];
    }
  }
  if (!regular || !(std::fabs(total) > 0) || !(std::fabs(total) < 1e300)) {
    for (int64_t i = 0; i < k; ++i) a[i] = i == newest ? 1.0 : 0.0;
    return;
  }
  for (int64_t i = 0; i < k; ++i) a[i] /= total;
}

// out = sum_i a_i X_i (+ beta * sum_i a_i G_i where G is given), one pass.
template <class T>
PYRECON_INLINE void combine(const double* a, int64_t k, const T* X, const T* G, double beta, int64_t stride,
                            int64_t length, T* out) {
  T w[kMaxMemory], u[kMaxMemory];
  for (int64_t i = 0; i < k; ++i) {
    w[i] = static_cast<T>(a[i]);
    u[i] = static_cast<T>(beta * a[i]);
  }
  int64_t p = 0;
  for (; p + 2 * lanes<T> <= length; p += 2 * lanes<T>) {
    Vec<T> s{}, t{};
    for (int64_t i = 0; i < k; ++i) {
      s += load(X + i * stride + p) * w[i];
      t += load(X + i * stride + p + lanes<T>) * w[i];
    }
    if (G != nullptr)
      for (int64_t i = 0; i < k; ++i) {
        s += load(G + i * stride + p) * u[i];
        t += load(G + i * stride + p + lanes<T>) * u[i];
      }
    store<T>(out + p, s);
    store<T>(out + p + lanes<T>, t);
  }
  for (; p < length; ++p) {
    T s = 0;
    for (int64_t i = 0; i < k; ++i) s += X[i * stride + p] * w[i];
    if (G != nullptr)
      for (int64_t i = 0; i < k; ++i) s += G[i * stride + p] * u[i];
    out[p] = s;
  }
}

// g = fx - x and h = x + beta g into their slots, for one block; sums |g|^2 and |fx|^2 into norms.
template <class T>
PYRECON_INLINE void push(const T* fx, const T* x, T* g, T* h, T beta, int64_t length, double* norms) {
  Vec<T> sg{}, sf{};
  int64_t i = 0;
  for (; i + lanes<T> <= length; i += lanes<T>) {
    const Vec<T> vf = load(fx + i), vx = load(x + i), vg = vf - vx;
    store<T>(g + i, vg);
    store<T>(h + i, vx + vg * beta);
    sg += vg * vg;
    sf += vf * vf;
  }
  T tg = sum<T>(sg), tf = sum<T>(sf);
  for (; i < length; ++i) {
    g[i] = fx[i] - x[i];
    h[i] = x[i] + beta * g[i];
    tg += g[i] * g[i];
    tf += fx[i] * fx[i];
  }
  norms[0] += tg;
  norms[1] += tf;
}

template <class T>
PYRECON_INLINE void advance_sample(const Component<T>* components, int64_t n_components, int64_t k, T* x, int64_t row,
                                   const AndersonWorkspace<T>& work, double* norms, const AndersonOptions& options) {
  const int64_t m = work.m, n = work.n;
  T *H = work.H + row * m * n, *G = work.G + row * m * n;
  double* gram = work.gram + row * m * m;
  int64_t count = work.count[row];
  const int64_t slot = count % m;
  const double last = count > 0 ? gram[((count - 1) % m) * (m + 1)] : 0.0;
  const int64_t stored = count + 1 < m ? count + 1 : m;

  double products[kMaxMemory] = {};
  norms[0] = norms[1] = 0;
  for (int64_t c = 0; c < n_components; ++c) {
    const Component<T>& part = components[c];
    const T* fx = part.fx + k * part.length;
    for (int64_t begin = 0; begin < part.length; begin += kBlock) {
      const int64_t length = begin + kBlock < part.length ? kBlock : part.length - begin;
      const int64_t at = part.offset + begin;
      push(fx + begin, x + at, G + slot * n + at, H + slot * n + at, static_cast<T>(options.beta), length, norms);
      add_products(G + slot * n + at, G + at, n, stored, length, products);
    }
  }
  if (!(norms[0] + norms[1] < 1e300)) return;  // NaN or infinity: the solver reads it off the norms; x stays as it is

  if (options.safeguard > 0 && count > 0 && norms[0] > options.safeguard * options.safeguard * last) {
    // The mixed step made things worse: forget the history, keep this iterate as its only entry.
    if (slot != 0) {
      std::memcpy(G, G + slot * n, n * sizeof(T));
      std::memcpy(H, H + slot * n, n * sizeof(T));
    }
    gram[0] = norms[0];
    std::memcpy(x, H, n * sizeof(T));
    work.count[row] = 1;
    return;
  }
  for (int64_t i = 0; i < stored; ++i) gram[slot * m + i] = gram[i * m + slot] = products[i];
  double a[kMaxMemory];
  weights(gram, m, stored, slot, options, a);
  combine<T>(a, stored, H, nullptr, 0.0, n, n, x);
  work.count[row] = count + 1;
}

}  // namespace

template <class T>
void anderson_mix(const T* X, const T* G, T* gram, const int64_t* count, int64_t count_stride, T* next, int64_t batch,
                  int64_t m, int64_t n, const AndersonOptions& options, int threads) {
  parallel_for(threads, batch, 32768 / (m * n + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t given = count[b * count_stride], stored_so_far = given > 1 ? given : 1;
      const int64_t stored = stored_so_far < m ? stored_so_far : m, slot = (stored_so_far - 1) % m;
      const T* Gb = G + b * m * n;
      T* gb = gram + b * m * m;
      double products[kMaxMemory] = {};
      for (int64_t at = 0; at < n; at += kBlock)
        add_products(Gb + slot * n + at, Gb + at, n, stored, at + kBlock < n ? kBlock : n - at, products);
      for (int64_t i = 0; i < stored; ++i) gb[slot * m + i] = gb[i * m + slot] = static_cast<T>(products[i]);
      double a[kMaxMemory];
      weights(gb, m, stored, slot, options, a);
      combine(a, stored, X + b * m * n, options.beta == 0 ? nullptr : Gb, options.beta, n, n, next + b * n);
    }
  });
}

template <class T>
void anderson_advance(const Component<T>* components, int64_t n_components, T* x, const int64_t* rows, int64_t active,
                      const AndersonWorkspace<T>& work, double* norms, const AndersonOptions& options, int threads) {
  parallel_for(threads, active, 32768 / (work.m * work.n + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k)
      advance_sample(components, n_components, k, x + k * work.n, rows == nullptr ? k : rows[k], work, norms + 2 * k,
                     options);
  });
}

template void anderson_mix(const float*, const float*, float*, const int64_t*, int64_t, float*, int64_t, int64_t,
                           int64_t, const AndersonOptions&, int);
template void anderson_mix(const double*, const double*, double*, const int64_t*, int64_t, double*, int64_t, int64_t,
                           int64_t, const AndersonOptions&, int);
template void anderson_advance(const Component<float>*, int64_t, float*, const int64_t*, int64_t,
                               const AndersonWorkspace<float>&, double*, const AndersonOptions&, int);
template void anderson_advance(const Component<double>*, int64_t, double*, const int64_t*, int64_t,
                               const AndersonWorkspace<double>&, double*, const AndersonOptions&, int);

}  // namespace pyrecon::PYRECON_ISA
