// One sweep visits the rows in order and projects on each. With e_k = |a_k|^2,
//
//   alpha_k = (y_k - a_k.x - weight w_k) / (e_k + weight),   x += alpha_k conj(a_k),   w_k += alpha_k.
//
// Rows are taken in blocks of P. The products of a block's rows with x are formed together from the x before the block
// and corrected by its Gram matrix G_kl = a_k.conj(a_l): a_k.x_k = a_k.x + sum_{l<k} G_kl alpha_l. The iterates are the
// same, but x is read and written once a block instead of once a row, and P chains of additions run side by side.
//
// Two layouts. Few samples: vectors run along the columns of A and x as they lie in memory. Many samples: vectors run
// along the batch over x held as [column][sample], and no horizontal sum is left.
#include "cpu/kaczmarz.hpp"

#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"

namespace pyrecon::PYRECON_ISA {
namespace {

constexpr int P = 4;           // rows a block; with 6 the Gram matrices cost more than the longer block saves
constexpr int64_t kRun = 256;  // a sum of products is restarted after this many terms a lane

template <bool Complex>
inline constexpr int parts = Complex ? 2 : 1;

// The rows of one block. A row missing from the last block is a row of zeros.
template <class T>
struct Block {
  const T* row[P];
  int64_t index[P];
  int size;
};

template <class T, bool Complex>
PYRECON_INLINE Block<T> block_at(const Kaczmarz<T>& p, const T* zeros, int64_t sweep, int64_t step) {
  Block<T> block;
  block.size = 0;
  for (int k = 0; k < P; ++k) {
    block.index[k] = 0;
    block.row[k] = zeros;
    if (step + k < p.steps) {
      const int64_t at = (p.order_per_sweep ? sweep * p.steps : 0) + step + k;
      block.index[k] = p.order ? p.order[at] : step + k;
      block.row[k] = p.A + block.index[k] * p.columns * parts<Complex>;
      ++block.size;
    }
  }
  return block;
}

template <class T, int... I>
PYRECON_INLINE Vec<T> swap_pairs(Vec<T> v, Indices<I...>) {
  return shuffle(v, v, Indices<(I ^ 1)...>{});
}
template <class T, int... I>
PYRECON_INLINE Vec<T> alternating_sign(Indices<I...>) {
  return Vec<T>{(I & 1 ? T(-1) : T(1))...};
}
// Real and imaginary part exchanged in every pair of lanes; +1, -1, +1, ...
template <class T>
PYRECON_INLINE Vec<T> swapped(Vec<T> v) {
  return swap_pairs<T>(v, typename Range<lanes<T>>::type{});
}
template <class T>
PYRECON_INLINE Vec<T> alternating() {
  return alternating_sign<T>(typename Range<lanes<T>>::type{});
}

// A row that meets several vectors is held in a register: as memory operands of its products, which GCC prefers, it
// would be loaded for each, and two samples would take 1.3 times as long.
template <int Uses, class T>
PYRECON_INLINE Vec<T> load_once(const T* p) {
  Vec<T> v = load(p);
#if defined(__x86_64__) && !defined(PYRECON_EMULATE_AVX512)
  if constexpr (Uses > 1) asm("" : "+v"(v));
#endif
  return v;
}

// The system matrix streams from the L3 cache or memory: without this a sweep takes a fifth longer.
template <class T>
PYRECON_INLINE void prefetch_rows(const Block<T>& block, int64_t i) {
  if (i % static_cast<int64_t>(64 / sizeof(T)) < lanes<T>)
    for (int k = 0; k < P; ++k) __builtin_prefetch(block.row[k] + i);
}

// Columns as whole vectors. What is left over is the last whole vector with the lanes already done masked to zero.
template <class T>
struct Columns {
  int64_t whole, last;
  Vec<T> mask;
  bool rest;
};

template <class T>
PYRECON_INLINE Columns<T> columns_of(int64_t width) {
  Columns<T> columns{width - width % lanes<T>, width - lanes<T>, Vec<T>{}, width % lanes<T> != 0};
  for (int64_t i = 0; i < lanes<T>; ++i) columns.mask[i] = i >= lanes<T> - width % lanes<T> ? T(1) : T(0);
  return columns;
}

// --- Gram matrices -----------------------------------------------------------------------------------------------
// gram[(k P + l) parts + part] = a_k.conj(a_l) for l <= k. Real parts: a_k.a_l over the reals; imaginary parts, for
// l < k: a_k.swapped(a_l), odd lanes less even ones.
template <class T, bool Complex, bool Imaginary>
PYRECON_INLINE void gram_part(const Block<T>& block, const Block<T>& next, const Columns<T>& columns, T* gram) {
  constexpr int first = Imaginary ? 1 : 0, pairs = P * (P + 1 - 2 * first) / 2;
  const auto pair = [](int k, int l) __attribute__((always_inline)) { return k * (k + 1 - 2 * first) / 2 + l; };
  T total[pairs] = {};
  Vec<T> acc[pairs] = {};
  const auto add = [&](int64_t i, bool rest) __attribute__((always_inline)) {
    Vec<T> a[P], b[P];
#pragma GCC unroll 8
    for (int k = 0; k < P; ++k) {
      a[k] = load_once<P>(block.row[k] + i);
      b[k] = Imaginary ? swapped<T>(a[k]) : a[k];
      if (rest) b[k] *= columns.mask;
    }
#pragma GCC unroll 8
    for (int k = first; k < P; ++k)
#pragma GCC unroll 8
      for (int l = 0; l <= k - first; ++l) acc[pair(k, l)] += a[k] * b[l];
  };
  const auto restart = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int q = 0; q < pairs; ++q) {
      total[q] += sum<T>(Imaginary ? -alternating<T>() * acc[q] : acc[q]);
      acc[q] = Vec<T>{};
    }
  };
  for (int64_t i = 0; i < columns.whole; i += lanes<T>) {
    if (i > 0 && i % (kRun * lanes<T>) == 0) restart();
    add(i, false);
    if constexpr (!Imaginary) prefetch_rows<T>(next, i);
  }
  if (columns.rest) add(columns.last, true);
  restart();
  for (int k = first; k < P; ++k)
    for (int l = 0; l <= k - first; ++l) gram[(k * P + l) * parts<Complex> + Imaginary] = total[pair(k, l)];
}

template <class T, bool Complex>
PYRECON_INLINE void gram_block(const Block<T>& block, const Block<T>& next, const Columns<T>& columns, T* gram) {
  gram_part<T, Complex, false>(block, next, columns, gram);
  if constexpr (Complex) gram_part<T, Complex, true>(block, next, columns, gram);
}

template <class T, bool Complex>  // fewer columns than lanes
void gram_narrow(const Block<T>& block, int64_t columns, T* gram) {
  constexpr int C = parts<Complex>;
  for (int k = 0; k < P; ++k)
    for (int l = 0; l <= k; ++l) {
      const T *a = block.row[k], *b = block.row[l];
      T re = 0, im = 0;
      for (int64_t j = 0; j < columns * C; j += C) {
        re += a[j] * b[j];
        if constexpr (Complex) {
          re += a[j + 1] * b[j + 1];
          im += a[j + 1] * b[j] - a[j] * b[j + 1];
        }
      }
      gram[(k * P + l) * C] = re;
      if constexpr (Complex) gram[(k * P + l) * C + 1] = im;
    }
}

// --- vectors along the columns -----------------------------------------------------------------------------------
// F faces of x meet every row: the S samples, or for one complex sample x itself and x with its parts exchanged.
template <bool Complex, int S>
inline constexpr int faces = Complex ? 2 : S;

template <class T, bool Complex, int S>
PYRECON_INLINE void multiply(const Block<T>& block, T* const (&x)[S], const Columns<T>& columns,
                             T (&product)[P][faces<Complex, S>]) {
  constexpr int F = faces<Complex, S>;
  Vec<T> acc[P][F] = {};
  const auto add = [&](int64_t i, bool rest) __attribute__((always_inline)) {
    Vec<T> v[F];
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) v[s] = rest ? load(x[s] + i) * columns.mask : load(x[s] + i);
    if constexpr (Complex) v[1] = swapped<T>(v[0]);
#pragma GCC unroll 8
    for (int k = 0; k < P; ++k) {
      const Vec<T> a = load_once<F>(block.row[k] + i);
#pragma GCC unroll 8
      for (int f = 0; f < F; ++f) acc[k][f] += a * v[f];
    }
  };
  const auto restart = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int k = 0; k < P; ++k)
#pragma GCC unroll 8
      for (int f = 0; f < F; ++f) {
        product[k][f] += sum<T>(Complex && f == 0 ? alternating<T>() * acc[k][f] : acc[k][f]);
        acc[k][f] = Vec<T>{};
      }
  };
  for (int k = 0; k < P; ++k)
    for (int f = 0; f < F; ++f) product[k][f] = 0;
  int64_t i = 0;
  for (int64_t end = kRun * lanes<T>; end < columns.whole; end += kRun * lanes<T>) {
    for (; i < end; i += lanes<T>) add(i, false);
    restart();
  }
  for (; i < columns.whole; i += lanes<T>) add(i, false);
  if (columns.rest) add(columns.last, true);
  restart();
}

// Adds alpha times the conjugated rows of the block to x.
template <class T, bool Complex, int S>
PYRECON_INLINE void update(const Block<T>& block, const T (&alpha)[P][faces<Complex, S>], const Block<T>& next,
                           T* const (&x)[S], const Columns<T>& columns) {
  constexpr int F = faces<Complex, S>;
  const auto add = [&](int64_t i, bool rest) __attribute__((always_inline)) {
    Vec<T> v[F] = {};
    if constexpr (!Complex)
#pragma GCC unroll 8
      for (int f = 0; f < F; ++f) v[f] = load(x[f] + i);
#pragma GCC unroll 8
    for (int k = 0; k < P; ++k) {
      Vec<T> a = load_once<F>(block.row[k] + i);
      if (rest) a *= columns.mask;
#pragma GCC unroll 8
      for (int f = 0; f < F; ++f) v[f] += alpha[k][f] * a;
    }
    if constexpr (Complex) v[0] = load(x[0] + i) + alternating<T>() * v[0] + swapped<T>(v[1]);
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) store<T>(x[s] + i, v[s]);
  };
  for (int64_t i = 0; i < columns.whole; i += lanes<T>) {
    add(i, false);
    prefetch_rows<T>(next, i);
  }
  if (columns.rest) add(columns.last, true);
}

// The block's triangular system for one sample, whose numbers are face `f` (and f + 1: the imaginary part).
template <class T, bool Complex, int F>
PYRECON_INLINE void solve_block(const Kaczmarz<T>& p, const Block<T>& block, const T* gram, int64_t sample,
                                const T (&product)[P][F], int f, T (&alpha)[P][F]) {
  const T weight = p.weight[sample];
#pragma GCC unroll 8
  for (int k = 0; k < P; ++k) {
    const int64_t at = (sample * p.rows + block.index[k]) * parts<Complex>;
    const T norm = gram[(k * P + k) * parts<Complex>] + weight;
    const T inverse = 1 / norm;  // beside the chain of dependent steps: a division in it takes three times a product
    const bool present = k < block.size && norm != 0;  // true for NaN, which must show
    if constexpr (Complex) {
      T re = 0, im = 0;
      if (present) {
        re = p.y[at] - weight * p.dual[at] - product[k][0];
        im = p.y[at + 1] - weight * p.dual[at + 1] - product[k][1];
#pragma GCC unroll 8
        for (int l = 0; l < k; ++l) {
          const T gr = gram[(k * P + l) * 2], gi = gram[(k * P + l) * 2 + 1];
          re -= gr * alpha[l][0] - gi * alpha[l][1];
          im -= gr * alpha[l][1] + gi * alpha[l][0];
        }
        p.dual[at] += re *= inverse;
        p.dual[at + 1] += im *= inverse;
      }
      alpha[k][0] = re;
      alpha[k][1] = im;
    } else {
      T value = 0;
      if (present) {
        value = p.y[at] - weight * p.dual[at] - product[k][f];
#pragma GCC unroll 8
        for (int l = 0; l < k; ++l) value -= gram[k * P + l] * alpha[l][f];
        p.dual[at] += value *= inverse;
      }
      alpha[k][f] = value;
    }
  }
}

template <class T, bool Complex>
PYRECON_INLINE void clip(T* x, T* active, int64_t columns) {
  for (int64_t j = 0; j < columns; ++j) {
    const bool cut = x[j * parts<Complex>] < 0;  // false for NaN, which stays
    if (cut) x[j * parts<Complex>] = 0;
    if constexpr (Complex) x[2 * j + 1] = 0;
    if (active) active[j] = cut ? T(0) : T(1);
  }
}

template <class T, bool Complex, int S>
void sweep_along_columns(const Kaczmarz<T>& p, const T* grams, const T* zeros, int64_t sample) {
  constexpr int F = faces<Complex, S>;
  const int64_t width = p.columns * parts<Complex>, blocks = (p.steps + P - 1) / P;
  const Columns<T> columns = columns_of<T>(width);
  T* x[S];
  for (int s = 0; s < S; ++s) x[s] = p.x + (sample + s) * width;
  for (int64_t sweep = 0; sweep < p.sweeps; ++sweep) {
    const T* gram = grams + (p.order_per_sweep ? sweep * blocks : 0) * P * P * parts<Complex>;
    Block<T> block = block_at<T, Complex>(p, zeros, sweep, 0);
    for (int64_t begin = 0; begin < p.steps; begin += P, gram += P * P * parts<Complex>) {
      const Block<T> next = block_at<T, Complex>(p, zeros, sweep, begin + P);
      T product[P][F], alpha[P][F];
      multiply<T, Complex, S>(block, x, columns, product);
      for (int s = 0; s < S; ++s) solve_block<T, Complex, F>(p, block, gram, sample + s, product, s, alpha);
      update<T, Complex, S>(block, alpha, next, x, columns);
      if (p.multipliers)
        for (int s = 0; s < S; ++s)
          for (int k = 0; k < block.size; ++k)
            for (int c = 0; c < parts<Complex>; ++c)
              p.multipliers[((sweep * p.batch + sample + s) * p.steps + begin + k) * parts<Complex> + c] =
                  alpha[k][s + c];
      block = next;
    }
    if (p.nonneg)
      for (int s = 0; s < S; ++s)
        clip<T, Complex>(x[s], p.active ? p.active + (sweep * p.batch + sample + s) * p.columns : nullptr, p.columns);
  }
}

// --- vectors along the batch --------------------------------------------------------------------------------------
// W vectors of samples times the parts of a number: P rows of accumulators, the operands and a broadcast in 16
// registers.
template <bool Complex>
inline constexpr int vectors = Complex ? 1 : 2;
template <class T, bool Complex>
inline constexpr int64_t tile_width = vectors<Complex> * lanes<T>;

// tile[i][b] = source[b][i] for i < n; lanes without a sample are zero.
template <class T, int64_t L>
void to_tile(const T* source, int64_t count, int64_t n, T* tile) {
  for (int64_t begin = 0; begin < n; begin += 64) {  // 64 lines of the tile stay in L1
    const int64_t end = begin + 64 < n ? begin + 64 : n;
    for (int64_t b = 0; b < L; ++b)
      for (int64_t i = begin; i < end; ++i) tile[i * L + b] = source && b < count ? source[b * n + i] : T(0);
  }
}

template <class T, int64_t L>
void from_tile(const T* tile, int64_t count, int64_t n, T* target) {
  for (int64_t begin = 0; begin < n; begin += 64) {
    const int64_t end = begin + 64 < n ? begin + 64 : n;
    for (int64_t b = 0; b < count; ++b)
      for (int64_t i = begin; i < end; ++i) target[b * n + i] = tile[i * L + b];
  }
}

template <class T, bool Complex>
PYRECON_INLINE void multiply_tile(const Block<T>& block, const T* X, int64_t columns,
                                  Vec<T> (&product)[P][parts<Complex>][vectors<Complex>]) {
  constexpr int C = parts<Complex>, W = vectors<Complex>;
  constexpr int64_t L = tile_width<T, Complex>;
  for (int k = 0; k < P; ++k)
    for (int c = 0; c < C; ++c)
      for (int w = 0; w < W; ++w) product[k][c][w] = Vec<T>{};
  for (int64_t begin = 0; begin < columns; begin += kRun) {
    const int64_t end = begin + kRun < columns ? begin + kRun : columns;
    Vec<T> acc[P][C][W] = {};
    for (int64_t j = begin; j < end; ++j) {
      Vec<T> v[C][W];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
        for (int w = 0; w < W; ++w) v[c][w] = load(X + (j * C + c) * L + w * lanes<T>);
#pragma GCC unroll 8
      for (int k = 0; k < P; ++k) {
        const Vec<T> re = splat(block.row[k][j * C]);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
          for (int w = 0; w < W; ++w) acc[k][c][w] += re * v[c][w];
        if constexpr (Complex) {
          const Vec<T> im = splat(block.row[k][2 * j + 1]);
#pragma GCC unroll 8
          for (int w = 0; w < W; ++w) {
            acc[k][0][w] -= im * v[1][w];
            acc[k][1][w] += im * v[0][w];
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int k = 0; k < P; ++k)
      for (int c = 0; c < C; ++c)
        for (int w = 0; w < W; ++w) product[k][c][w] += acc[k][c][w];
  }
}

template <class T, bool Complex>
PYRECON_INLINE void update_tile(const Block<T>& block, const Vec<T> (&alpha)[P][parts<Complex>][vectors<Complex>], T* X,
                                int64_t columns) {
  constexpr int C = parts<Complex>, W = vectors<Complex>;
  constexpr int64_t L = tile_width<T, Complex>;
  for (int64_t j = 0; j < columns; ++j) {
    Vec<T> v[C][W];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
      for (int w = 0; w < W; ++w) v[c][w] = load(X + (j * C + c) * L + w * lanes<T>);
#pragma GCC unroll 8
    for (int k = 0; k < P; ++k) {
      const Vec<T> re = splat(block.row[k][j * C]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
        for (int w = 0; w < W; ++w) v[c][w] += re * alpha[k][c][w];
      if constexpr (Complex) {
        const Vec<T> im = splat(block.row[k][2 * j + 1]);
#pragma GCC unroll 8
        for (int w = 0; w < W; ++w) {
          v[0][w] += im * alpha[k][1][w];
          v[1][w] -= im * alpha[k][0][w];
        }
      }
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
      for (int w = 0; w < W; ++w) store<T>(X + (j * C + c) * L + w * lanes<T>, v[c][w]);
  }
}

// The block's triangular systems, one a lane. Y and D are [row][part][sample].
template <class T, bool Complex>
PYRECON_INLINE void solve_tile(const Block<T>& block, const T* gram, const T* weight, const T* Y, T* D,
                               const Vec<T> (&product)[P][parts<Complex>][vectors<Complex>],
                               Vec<T> (&alpha)[P][parts<Complex>][vectors<Complex>]) {
  constexpr int C = parts<Complex>, W = vectors<Complex>;
  constexpr int64_t L = tile_width<T, Complex>;
#pragma GCC unroll 8
  for (int k = 0; k < P; ++k)
#pragma GCC unroll 8
    for (int w = 0; w < W; ++w) {
      const Vec<T> lambda = load(weight + w * lanes<T>);
      const Vec<T> norm = lambda + gram[(k * P + k) * C];
      const auto present = norm != 0;  // true for NaN, which must show
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        alpha[k][c][w] = Vec<T>{};
        if (k >= block.size) continue;
        const int64_t at = (block.index[k] * C + c) * L + w * lanes<T>;
        Vec<T> value = load(Y + at) - lambda * load(D + at) - product[k][c][w];
#pragma GCC unroll 8
        for (int l = 0; l < k; ++l) {
          value -= gram[(k * P + l) * C] * alpha[l][c][w];
          if constexpr (Complex)
            value += (c == 0 ? gram[(k * P + l) * 2 + 1] : -gram[(k * P + l) * 2 + 1]) * alpha[l][1 - c][w];
        }
        alpha[k][c][w] = present ? value / norm : Vec<T>{};
        store<T>(D + at, load(D + at) + alpha[k][c][w]);
      }
    }
}

// `count` samples from `sample` on, in the tile's arrays of (columns + 2 rows) numbers a lane.
template <class T, bool Complex>
void sweep_along_batch(const Kaczmarz<T>& p, const T* grams, const T* zeros, int64_t sample, int64_t count, T* tile) {
  constexpr int C = parts<Complex>, W = vectors<Complex>;
  constexpr int64_t L = tile_width<T, Complex>;
  const int64_t width = p.columns * C, height = p.rows * C, blocks = (p.steps + P - 1) / P;
  T *X = tile, *Y = X + width * L, *D = Y + height * L;
  alignas(64) T weight[L] = {};
  for (int64_t b = 0; b < count; ++b) weight[b] = p.weight[sample + b];
  to_tile<T, L>(p.x0 ? p.x0 + sample * width : nullptr, count, width, X);
  to_tile<T, L>(p.y + sample * height, count, height, Y);
  to_tile<T, L>(p.dual0 ? p.dual0 + sample * height : nullptr, count, height, D);
  for (int64_t sweep = 0; sweep < p.sweeps; ++sweep) {
    const T* gram = grams + (p.order_per_sweep ? sweep * blocks : 0) * P * P * C;
    for (int64_t begin = 0; begin < p.steps; begin += P, gram += P * P * C) {
      const Block<T> block = block_at<T, Complex>(p, zeros, sweep, begin);
      Vec<T> product[P][C][W], alpha[P][C][W];
      multiply_tile<T, Complex>(block, X, p.columns, product);
      solve_tile<T, Complex>(block, gram, weight, Y, D, product, alpha);
      update_tile<T, Complex>(block, alpha, X, p.columns);
      if (p.multipliers)
        for (int64_t b = 0; b < count; ++b)
          for (int k = 0; k < block.size; ++k)
            for (int c = 0; c < C; ++c)
              p.multipliers[((sweep * p.batch + sample + b) * p.steps + begin + k) * C + c] =
                  alpha[k][c][b / lanes<T>][b % lanes<T>];
    }
    if (p.nonneg)
      for (int64_t j = 0; j < p.columns; ++j)
        for (int64_t b = 0; b < L; ++b) {
          T& value = X[j * C * L + b];
          const bool cut = value < 0;  // false for NaN, which stays
          if (cut) value = 0;
          if constexpr (Complex) X[(2 * j + 1) * L + b] = 0;
          if (p.active && b < count) p.active[(sweep * p.batch + sample + b) * p.columns + j] = cut ? T(0) : T(1);
        }
  }
  from_tile<T, L>(X, count, width, p.x + sample * width);
  from_tile<T, L>(D, count, height, p.dual + sample * height);
}

// --- the parts put together ---------------------------------------------------------------------------------------
// The workspace: Gram matrices of all blocks, a row of zeros, then one tile a share if shares are wide enough for one.
template <class T, bool Complex>
struct Plan {
  int64_t blocks, grams, zeros, tile;
  int shares;

  // Vectors along the batch pay off from five eighths of a tile on (measured), and serve few columns.
  bool takes_tile(int64_t samples, int64_t width) const {
    return samples > 0 && (width < lanes<T> || 8 * samples >= 5 * tile_width<T, Complex>);
  }
};

template <class T, bool Complex>
PYRECON_INLINE Plan<T, Complex> plan(const Kaczmarz<T>& p) {
  constexpr int C = parts<Complex>;
  constexpr int64_t L = tile_width<T, Complex>;
  const int64_t work = p.sweeps * p.steps * p.columns * C * C;  // multiplications a sample
  Plan<T, Complex> plan;
  plan.blocks = (p.order_per_sweep ? p.sweeps : 1) * ((p.steps + P - 1) / P);
  plan.grams = plan.blocks * P * P * C;  // a multiple of 64 bytes
  plan.zeros = (p.columns * C + 15) / 16 * 16;
  plan.shares = share_count(p.threads, p.batch, 65536 / (work + 1) + 1);
  const int64_t widest = (p.batch + plan.shares - 1) / plan.shares;
  plan.tile = plan.takes_tile(widest, p.columns * C) ? (p.columns + 2 * p.rows) * C * L : 0;
  return plan;
}

template <class T>
PYRECON_INLINE void copy_or_zero(T* target, const T* source, int64_t n) {
  if (n == 0) return;  // an empty tensor may have no address, which memset forbids
  if (source)
    std::memcpy(target, source, n * sizeof(T));
  else
    std::memset(target, 0, n * sizeof(T));
}

}  // namespace

template <class T, bool Complex>
int64_t kaczmarz_workspace(const Kaczmarz<T>& p) {
  const auto sizes = plan<T, Complex>(p);
  return sizes.grams + sizes.zeros + sizes.shares * sizes.tile;
}

template <class T, bool Complex>
void kaczmarz(const Kaczmarz<T>& p) {
  constexpr int C = parts<Complex>;
  constexpr int64_t L = tile_width<T, Complex>;
  const auto sizes = plan<T, Complex>(p);
  T *grams = p.workspace, *zeros = grams + sizes.grams, *tiles = zeros + sizes.zeros;
  copy_or_zero<T>(zeros, nullptr, sizes.zeros);

  const int64_t width = p.columns * C, height = p.rows * C, blocks = (p.steps + P - 1) / P;
  parallel_for(p.threads, sizes.blocks, 8192 / (width + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Block<T> block = block_at<T, Complex>(p, zeros, b / blocks, b % blocks * P);
      if (width < lanes<T>)
        gram_narrow<T, Complex>(block, p.columns, grams + b * P * P * C);
      else
        gram_block<T, Complex>(block, block_at<T, Complex>(p, zeros, b / blocks, (b % blocks + 1) * P),
                               columns_of<T>(width), grams + b * P * P * C);
    }
  });

  parallel_shares(sizes.shares, p.batch, [&](int share, int64_t begin, int64_t end) {
    while (sizes.takes_tile(end - begin, width)) {
      const int64_t count = end - begin < L ? end - begin : L;
      sweep_along_batch<T, Complex>(p, grams, zeros, begin, count, tiles + share * sizes.tile);
      begin += count;
    }
    copy_or_zero<T>(p.x + begin * width, p.x0 ? p.x0 + begin * width : nullptr, (end - begin) * width);
    copy_or_zero<T>(p.dual + begin * height, p.dual0 ? p.dual0 + begin * height : nullptr, (end - begin) * height);
    if constexpr (!Complex)
      for (; end - begin >= 2; begin += 2) sweep_along_columns<T, Complex, 2>(p, grams, zeros, begin);
    for (; begin < end; ++begin) sweep_along_columns<T, Complex, 1>(p, grams, zeros, begin);
  });
}

#define INSTANTIATE(T, Complex)                                          \
  template int64_t kaczmarz_workspace<T, Complex>(const Kaczmarz<T>& p); \
  template void kaczmarz<T, Complex>(const Kaczmarz<T>& p);
INSTANTIATE(float, false)
INSTANTIATE(float, true)
INSTANTIATE(double, false)
INSTANTIATE(double, true)

}  // namespace pyrecon::PYRECON_ISA
