// The fused step z = proj(A x - d), r = Re(A^H (z + d)) reads A from memory once for few samples, twice for many.
//
// Few samples (memory bound): z + d = (y + d) + s (v - y) with v = A x - d, and the ball's scale s is known only after
// the last row. So the pass over A that makes v accumulates both p = A^H (y + d) and q = A^H (v - y): r = p + s q.
// Many samples (bound by arithmetic): two products in register tiles, with the projection between them; lanes run along
// the columns of A in both, so neither A nor the data is transposed or copied.
//
// A complex row of n numbers is taken as k = 2 n reals. A complex image is two real right-hand sides, (Re, -Im) and
// (Im, Re), that give the real and the imaginary part of A x; a real image under a complex matrix is one, (x, x), whose
// even lanes give the real and odd lanes the imaginary part.
#include "cpu/consistency.hpp"

#include <cmath>

#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"

namespace pyrecon::PYRECON_ISA {
namespace {

// --- sums and the ball -------------------------------------------------------------------------------------------

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

// How a point at a distance from the centre moves: the factor on its offset, and whether it moves at all.
struct Shrink {
  double scale;
  bool outside;  // true for NaN as well: it shows in the whole sample then, wherever it came from
};
PYRECON_INLINE Shrink shrink(double squared, double radius) {
  const double distance = std::sqrt(squared);
  if (distance <= radius) return {1.0, false};
  return {radius / distance, true};
}

template <class T>
PYRECON_INLINE void move(const T* v, const T* center, Shrink s, T* out, int64_t n) {
  if (!s.outside) {
    if (out != v) std::memcpy(out, v, n * sizeof(T));
    return;
  }
  const T scale = static_cast<T>(s.scale);
  int64_t i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>)
    store<T>(out + i, load(center + i) + (load(v + i) - load(center + i)) * scale);
  for (; i < n; ++i) out[i] = center[i] + (v[i] - center[i]) * scale;
}

}  // namespace

template <class T>
void project_l2_ball(const T* v, const T* center, const T* radius, T* out, int64_t batch, int64_t n, int threads) {
  constexpr int64_t grain = 16384;          // reals; two threads save nothing below, measured with 2
  if (batch < threads && n >= 2 * grain) {  // few long rows: every thread takes a part of each
    const int shares = share_count(threads, n, grain);
    Scratch<double> partial(shares);
    for (int64_t b = 0; b < batch; ++b, v += n, center += n, out += n) {
      parallel_shares(shares, n, [&](int share, int64_t begin, int64_t end) {
        partial[share] = squared_distance(v + begin, center + begin, end - begin);
      });
      double squared = 0;
      for (int s = 0; s < shares; ++s) squared += partial[s];
      const Shrink s = shrink(squared, radius[b]);
      parallel_shares(shares, n, [&](int, int64_t begin, int64_t end) {
        move(v + begin, center + begin, s, out + begin, end - begin);
      });
    }
    return;
  }
  parallel_for(threads, batch, grain / (n + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      move(v + b * n, center + b * n, shrink(squared_distance(v + b * n, center + b * n, n), radius[b]), out + b * n,
           n);
  });
}

// --- the fused step ----------------------------------------------------------------------------------------------
namespace {

constexpr int tile = vector_registers == 32 ? 24 : 12;  // accumulators of a register tile
constexpr int64_t chunk = 120;                          // rows whose float sums run on before they restart

// The problem in reals, and how a row of k reals splits into vectors: `full` whole ones, and if k is no multiple, one
// more that ends with the row and overlaps the one before. Right-hand sides and sums are kept in that layout, so no
// vector is ever partial; the lanes counted twice are zero in a right-hand side and unread in a sum.
template <class T, Field F>
struct Problem {
  static constexpr int sides_per_sample = F == Field::complex ? 2 : 1;
  static constexpr int unit = F == Field::complex_matrix ? 2 : 1;  // reals per row that one right-hand side yields
  static constexpr int width = sides_per_sample * unit;            // reals per number of A, d, y, z, ax

  const T *a, *x, *d, *y, *radius;
  T *ax, *z, *r;
  int64_t m, n, batch;
  bool multiply;  // make ax = A x; if not, it is given

  int64_t k = n * width;  // at least a vector: see step()
  int64_t full = k / lanes<T>;
  int64_t padded = (k + lanes<T> - 1) / lanes<T> * lanes<T>;
  int64_t sides = batch * sides_per_sample;

  bool has_tail() const { return padded > full * lanes<T>; }
  // Where real i of a row is in the padded layout.
  int64_t at(int64_t i) const { return i < full * lanes<T> ? i : i + padded - k; }
  // Where the first real that right-hand side `side` yields in row `row` is in d, y, z and ax.
  int64_t datum(int64_t side, int64_t row) const {
    return (side / sides_per_sample * m + row) * width + side % sides_per_sample;
  }
};

template <int UNIT, class T>
PYRECON_INLINE Vec<T> splat_unit(const T* p) {
  if constexpr (UNIT == 2) {
    return splat_pair(p);
  } else {
    return splat(*p);
  }
}

// Calls f(Int<S>) for the S = count < = MAX known at compile time.
template <int S>
struct Int {
  static constexpr int value = S;
};
template <int MAX, class Function>
PYRECON_INLINE void with_count(int64_t count, const Function& f) {
  if constexpr (MAX > 1) {
    if (count < MAX) return with_count<MAX - 1>(count, f);
  }
  f(Int<MAX>{});
}

// Right-hand sides in the padded layout, from the images of the samples.
template <class T, Field F>
PYRECON_INLINE void pack_images(const Problem<T, F>& p, T* out) {
  for (int64_t i = 0; i < p.sides * p.padded; ++i) out[i] = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t j = 0; j < p.n; ++j) {
      if constexpr (F == Field::real) {
        out[b * p.padded + p.at(j)] = p.x[b * p.n + j];
      } else {
        const int64_t re = p.at(2 * j), im = p.at(2 * j + 1);
        if constexpr (F == Field::complex_matrix) {
          T* side = out + b * p.padded;
          side[re] = side[im] = p.x[b * p.n + j];
        } else {
          T *for_re = out + 2 * b * p.padded, *for_im = for_re + p.padded;
          const T* value = p.x + 2 * (b * p.n + j);
          for_re[re] = for_im[im] = value[0];
          for_re[im] = -value[1];
          for_im[re] = value[1];
        }
      }
    }
  }
}

// A x for R rows from `row` and S right-hand sides from `side`, over the vectors [begin, end) of the rows and, if that
// is the end, the overlapping last one.
template <int R, int S, class T, Field F>
PYRECON_INLINE void forward_tile(const Problem<T, F>& p, const T* sides, int64_t row, int64_t side, int64_t begin,
                                 int64_t end) {
  const T *a = p.a + row * p.k, *x = sides + side * p.padded;
  Vec<T> total[R][S] = {};
  for (int64_t i = begin * lanes<T>; i < end * lanes<T>; i += lanes<T>) {
    Vec<T> value[S];
    for (int s = 0; s < S; ++s) value[s] = load(x + s * p.padded + i);
    for (int j = 0; j < R; ++j) {
      const Vec<T> aj = load(a + j * p.k + i);
      for (int s = 0; s < S; ++s) total[j][s] += aj * value[s];
    }
  }
  if (end == p.full && p.has_tail()) {
    for (int j = 0; j < R; ++j) {
      const Vec<T> aj = load(a + (j + 1) * p.k - lanes<T>);
      for (int s = 0; s < S; ++s) total[j][s] += aj * load(x + s * p.padded + p.full * lanes<T>);
    }
  }
  for (int s = 0; s < S; ++s) {
    for (int j = 0; j < R; ++j) {
      T* out = p.ax + p.datum(side + s, row + j);
      const auto folded = fold<p.unit>(total[j][s]);
      for (int u = 0; u < p.unit; ++u) out[u] = begin == 0 ? folded[u] : out[u] + folded[u];
    }
  }
}

// A x for the rows [begin, end): columns in blocks of which `tile` rows stay in the first-level cache for all samples.
template <class T, Field F>
PYRECON_INLINE void forward_rows(const Problem<T, F>& p, const T* sides, int64_t begin, int64_t end) {
  constexpr int64_t most = 1536 / PYRECON_VECTOR_BYTES;
  const int64_t blocks = p.full / most + 1;
  for (int64_t c = 0; c < blocks; ++c) {
    const int64_t from = p.full * c / blocks, to = p.full * (c + 1) / blocks;
    for (int64_t row = begin; row < end; row += tile) {
      const int64_t rows = row + tile < end ? tile : end - row;
      for (int64_t side = 0; side < p.sides; side += 4) {
        with_count<4>(p.sides - side, [&](auto count) {
          constexpr int S = decltype(count)::value, R = S == 1 ? 12 : tile / S;
          int64_t j = 0;
          for (; j + R <= rows; j += R) forward_tile<R, S>(p, sides, row + j, side, from, to);
          for (; j < rows; ++j) forward_tile<1, S>(p, sides, row + j, side, from, to);
        });
      }
    }
  }
}

// Sums over rows of A, one padded row per right-hand side (and kind of sum): they run in T and go on in double.
template <class T>
struct Sums {
  T* running;
  double* total;
  int64_t count;

  void clear() const {
    for (int64_t i = 0; i < count; ++i) running[i] = 0, total[i] = 0;
  }
  void flush() const {
    for (int64_t i = 0; i < count; ++i) total[i] += running[i], running[i] = 0;
  }
};

// running += A^T w for `rows` rows from `row`, S right-hand sides from `side` and V vectors of columns from `i`.
template <int S, int V, bool TAIL, class T, Field F>
PYRECON_INLINE void adjoint_tile(const Problem<T, F>& p, int64_t row, int64_t rows, int64_t side, int64_t i, const T* w,
                                 T* running) {
  const T* a = p.a + row * p.k;
  w += side * chunk * p.unit;
  running += side * p.padded + i;
  Vec<T> total[S][V] = {};
  for (int64_t j = 0; j < rows; ++j) {
    Vec<T> aj[V];
    for (int v = 0; v < V; ++v)
      aj[v] = TAIL ? load(a + (j + 1) * p.k - lanes<T>) : load(a + j * p.k + i + v * lanes<T>);
    for (int s = 0; s < S; ++s) {
      const Vec<T> ws = splat_unit<p.unit>(w + (s * chunk + j) * p.unit);
      for (int v = 0; v < V; ++v) total[s][v] += aj[v] * ws;
    }
  }
  for (int s = 0; s < S; ++s) {
    for (int v = 0; v < V; ++v) {
      T* out = running + s * p.padded + v * lanes<T>;
      store<T>(out, load(out) + total[s][v]);
    }
  }
}

// The same for all right-hand sides and columns of a chunk; its columns stay in cache strip by strip.
template <class T, Field F>
PYRECON_INLINE void adjoint_chunk(const Problem<T, F>& p, int64_t row, int64_t rows, const T* w, T* running) {
  constexpr int strip = tile / 4;
  for (int64_t v = 0; v < p.full; v += strip) {
    for (int64_t side = 0; side < p.sides; side += 4) {
      with_count<4>(p.sides - side, [&](auto s) {
        with_count<strip>(p.full - v, [&](auto count) {
          adjoint_tile<decltype(s)::value, decltype(count)::value, false>(p, row, rows, side, v * lanes<T>, w, running);
        });
      });
    }
  }
  if (p.has_tail()) {
    for (int64_t side = 0; side < p.sides; side += 4) {
      with_count<4>(p.sides - side, [&](auto s) {
        adjoint_tile<decltype(s)::value, 1, true>(p, row, rows, side, p.full * lanes<T>, w, running);
      });
    }
  }
}

// sums[q] += A^T w[q] for R rows from `row` and Q weights, along whole rows; fetches as many bytes from `next` ahead.
template <int R, int Q, class T, Field F>
PYRECON_INLINE void adjoint_rows(const Problem<T, F>& p, int64_t row, const T* const (&w)[Q], T* const (&sums)[Q],
                                 const char* next) {
  const int64_t full = p.full * lanes<T>;  // kept here: for all the compiler knows, the stores below change p
  const T* rows[R];
  for (int j = 0; j < R; ++j) rows[j] = p.a + (row + j) * p.k;
  Vec<T> weight[Q][R];
  for (int q = 0; q < Q; ++q)
    for (int j = 0; j < R; ++j) weight[q][j] = splat_unit<p.unit>(w[q] + j * p.unit);
  for (int64_t i = 0; i < full; i += lanes<T>) {
    for (int line = 0; line < R * PYRECON_VECTOR_BYTES; line += 64) __builtin_prefetch(next + line);
    next += R * PYRECON_VECTOR_BYTES;
    Vec<T> total[Q];
    for (int q = 0; q < Q; ++q) total[q] = load(sums[q] + i);
    for (int j = 0; j < R; ++j) {
      const Vec<T> aj = load(rows[j] + i);
      for (int q = 0; q < Q; ++q) total[q] += aj * weight[q][j];
    }
    for (int q = 0; q < Q; ++q) store<T>(sums[q] + i, total[q]);
  }
  if (p.has_tail()) {
    for (int q = 0; q < Q; ++q) {
      Vec<T> total = load(sums[q] + full);
      for (int j = 0; j < R; ++j) total += load(rows[j] + p.k - lanes<T>) * weight[q][j];
      store<T>(sums[q] + full, total);
    }
  }
}

// The same for any number of rows; the lines fetched ahead are those of the same rows `ahead` further down.
template <int Q, class T, Field F>
PYRECON_INLINE void adjoint_block(const Problem<T, F>& p, int64_t row, int64_t rows, const T* const (&w)[Q],
                                  T* const (&sums)[Q], int64_t ahead) {
  const T* weights[Q];
  const char* next = reinterpret_cast<const char*>(p.a) + (row + ahead) * p.k * sizeof(T);
  int64_t j = 0;
  for (int64_t step = 4; j < rows; j += step) {
    for (int q = 0; q < Q; ++q) weights[q] = w[q] + j * p.unit;
    if (j + 4 > rows) step = 1;
    if (step == 4)
      adjoint_rows<4, Q>(p, row + j, weights, sums, next + j * p.k * sizeof(T));
    else
      adjoint_rows<1, Q>(p, row + j, weights, sums, next + j * p.k * sizeof(T));
  }
}

// Where the ball's rows of z, and their sums z + d as weights of the adjoint, are written for one chunk of rows.
template <class T, Field F>
PYRECON_INLINE void project_chunk(const Problem<T, F>& p, const Shrink* shrinks, int64_t row, int64_t rows, T* w) {
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t at = p.datum(b * p.sides_per_sample, row), count = rows * p.width;
    const T *ax = p.ax + at, *d = p.d + at, *y = p.y + at;
    T* z = p.z + at;
    const T scale = static_cast<T>(shrinks[b].scale);
    if (shrinks[b].outside) {
      for (int64_t i = 0; i < count; ++i) z[i] = y[i] + ((ax[i] - d[i]) - y[i]) * scale;
    } else {
      for (int64_t i = 0; i < count; ++i) z[i] = ax[i] - d[i];
    }
    if (w == nullptr) continue;
    T* out = w + b * p.sides_per_sample * chunk * p.unit;
    if constexpr (F == Field::complex) {
      for (int64_t i = 0; i < rows; ++i) {
        out[i] = z[2 * i] + d[2 * i];
        out[chunk + i] = z[2 * i + 1] + d[2 * i + 1];
      }
    } else {
      for (int64_t i = 0; i < count; ++i) out[i] = z[i] + d[i];
    }
  }
}

// |A x - d - y|^2 of each sample over one chunk of rows, added to `squared`.
template <class T, Field F>
PYRECON_INLINE void add_squares(const Problem<T, F>& p, int64_t row, int64_t rows, double* squared) {
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t at = p.datum(b * p.sides_per_sample, row), count = rows * p.width;
    const T *ax = p.ax + at, *d = p.d + at, *y = p.y + at;
    Vec<T> total{};
    int64_t i = 0;
    for (; i + lanes<T> <= count; i += lanes<T>) {
      const Vec<T> t = load(ax + i) - load(d + i) - load(y + i);
      total += t * t;
    }
    T tail = sum<T>(total);
    for (; i < count; ++i) tail += (ax[i] - d[i] - y[i]) * (ax[i] - d[i] - y[i]);
    squared[b] += tail;
  }
}

// r from the sums of all shares: `kinds` sums per right-hand side, the second one times the ball's scale.
template <class T, Field F>
PYRECON_INLINE void combine(const Problem<T, F>& p, const double* total, int shares, int64_t per_share, int kinds,
                            const Shrink* shrinks, int64_t b) {
  const auto value = [&](int64_t side, int64_t column) {
    const double* first = total + side * kinds * p.padded + p.at(column);
    double sum = 0;
    for (int s = 0; s < shares; ++s) {
      sum += first[s * per_share];
      if (kinds == 2) sum += shrinks[b].scale * first[s * per_share + p.padded];
    }
    return sum;
  };
  for (int64_t j = 0; j < p.n; ++j) {
    if constexpr (F == Field::real) p.r[b * p.n + j] = value(b, j);
    if constexpr (F == Field::complex_matrix) p.r[b * p.n + j] = value(b, 2 * j) + value(b, 2 * j + 1);
    if constexpr (F == Field::complex) {
      T* out = p.r + 2 * (b * p.n + j);
      out[0] = value(2 * b, 2 * j) + value(2 * b + 1, 2 * j + 1);
      out[1] = value(2 * b + 1, 2 * j) - value(2 * b, 2 * j + 1);
    }
  }
}

constexpr int64_t few_sides = 3;            // up to here one pass over A is faster than two: see benchmarks
constexpr int64_t flush_rows = 16 * chunk;  // float sums of chunks go on in double after this many rows

template <class T, Field F>
void step(const Problem<T, F>& p, int threads) {
  if (p.k < lanes<T>) {  // rows shorter than a vector: a copy with zeros after them, in which every row is one
    Scratch<T> rows(p.m * lanes<T>);
    for (int64_t i = 0; i < p.m; ++i)
      for (int64_t j = 0; j < lanes<T>; ++j) rows[i * lanes<T> + j] = j < p.k ? p.a[i * p.k + j] : T{0};
    Problem<T, F> wide = p;
    wide.a = rows.get();
    wide.k = wide.padded = lanes<T>;
    wide.full = 1;
    return step(wide, threads);
  }
  const bool few = p.sides <= few_sides, once = few && p.multiply;
  const int kinds = once ? 2 : 1;
  const int shares = share_count(threads, p.m, 65536 / (p.k * p.sides + 1) + 1);
  const int64_t per_share = kinds * p.sides * p.padded, weights = p.sides * chunk * p.unit;
  Scratch<T> sides(p.multiply ? p.sides * p.padded : 0), running(shares * per_share), w(shares * weights);
  Scratch<double> total(shares * per_share), squared(shares * p.batch);
  Scratch<Shrink> shrinks(p.batch);
  if (p.multiply) pack_images(p, sides.get());

  parallel_shares(shares, p.m, [&](int share, int64_t begin, int64_t end) {
    double* squares = squared.get() + share * p.batch;
    for (int64_t b = 0; b < p.batch; ++b) squares[b] = 0;
    if (!once) {
      for (int64_t row = begin; row < end; row += chunk) {
        const int64_t rows = row + chunk < end ? chunk : end - row;
        if (p.multiply) forward_rows(p, sides.get(), row, row + rows);
        add_squares(p, row, rows, squares);
      }
      return;
    }
    const Sums<T> sums{running.get() + share * per_share, total.get() + share * per_share, per_share};
    sums.clear();
    int64_t unflushed = 0;
    for (int64_t row = begin; row < end; row += tile) {
      const int64_t rows = row + tile < end ? tile : end - row;
      forward_rows(p, sides.get(), row, row + rows);
      for (int64_t side = 0; side < p.sides; ++side) {
        T center[tile * 2], offset[tile * 2], square = 0;
        for (int64_t i = 0; i < rows; ++i) {
          for (int u = 0; u < p.unit; ++u) {
            const int64_t at = p.datum(side, row + i) + u;
            center[i * p.unit + u] = p.y[at] + p.d[at];
            const T t = offset[i * p.unit + u] = p.ax[at] - p.d[at] - p.y[at];
            square += t * t;
          }
        }
        squares[side / p.sides_per_sample] += square;
        T* out = sums.running + side * 2 * p.padded;
        adjoint_block<2>(p, row, rows, {center, offset}, {out, out + p.padded}, tile);
      }
      if ((unflushed += rows) >= chunk) sums.flush(), unflushed = 0;
    }
    sums.flush();
  });

  for (int64_t b = 0; b < p.batch; ++b) {
    double sum = 0;
    for (int s = 0; s < shares; ++s) sum += squared[s * p.batch + b];
    shrinks[b] = shrink(sum, p.radius[b]);
  }

  parallel_shares(shares, p.m, [&](int share, int64_t begin, int64_t end) {
    T* ws = w.get() + share * weights;
    const Sums<T> sums{running.get() + share * per_share, total.get() + share * per_share, per_share};
    if (!once) sums.clear();
    int64_t unflushed = 0;
    for (int64_t row = begin; row < end; row += chunk) {
      const int64_t rows = row + chunk < end ? chunk : end - row;
      project_chunk(p, shrinks.get(), row, rows, once ? nullptr : ws);
      if (once) continue;
      if (few) {
        for (int64_t side = 0; side < p.sides; ++side)
          adjoint_block<1>(p, row, rows, {ws + side * chunk * p.unit}, {sums.running + side * p.padded}, tile);
      } else {
        adjoint_chunk(p, row, rows, ws, sums.running);
      }
      if ((unflushed += few ? flush_rows : rows) >= flush_rows) sums.flush(), unflushed = 0;
    }
    if (!once) sums.flush();
  });

  parallel_for(threads, p.batch, 65536 / (p.k * shares * kinds + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) combine(p, total.get(), shares, per_share, kinds, shrinks.get(), b);
  });
}

}  // namespace

template <class T>
void sm_consistency(Field field, const T* a, const T* x, const T* d, const T* y, const T* radius, T* ax, T* z, T* r,
                    int64_t m, int64_t n, int64_t batch, bool multiply, int threads) {
  switch (field) {
    case Field::real:
      return step(Problem<T, Field::real>{a, x, d, y, radius, ax, z, r, m, n, batch, multiply}, threads);
    case Field::complex:
      return step(Problem<T, Field::complex>{a, x, d, y, radius, ax, z, r, m, n, batch, multiply}, threads);
    case Field::complex_matrix:
      return step(Problem<T, Field::complex_matrix>{a, x, d, y, radius, ax, z, r, m, n, batch, multiply}, threads);
  }
}

#define PYRECON_INSTANTIATE(T)                                                                                        \
  template void project_l2_ball(const T*, const T*, const T*, T*, int64_t, int64_t, int);                             \
  template void sm_consistency(Field, const T*, const T*, const T*, const T*, const T*, T*, T*, T*, int64_t, int64_t, \
                               int64_t, bool, int);
PYRECON_INSTANTIATE(float)
PYRECON_INSTANTIATE(double)

}  // namespace pyrecon::PYRECON_ISA
