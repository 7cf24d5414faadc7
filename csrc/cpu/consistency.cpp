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

#include "cpu/ball.hpp"
#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"

namespace pyrecon::PYRECON_ISA {

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

// Cache lines to fetch while a chunk is worked on: those of the next one, a few with each tile. Tiles walk down
// columns, which the processor's own prefetcher does not follow: without this a matrix in memory is read at half the
// speed.
struct Ahead {
  const char* at;
  int64_t lines;  // pairs of lines per tile, up to the number of its rows; 0: none
};

// running += A^T w for `rows` rows from `row`, S weights from `side` and V vectors of columns from `i`. Weight s of row
// j is w[s * stride + j * unit].
template <int S, int V, bool TAIL, class T, Field F>
PYRECON_INLINE void adjoint_tile(const Problem<T, F>& p, int64_t row, int64_t rows, int64_t i, const T* w,
                                 int64_t stride, T* running, Ahead& ahead) {
  const T* a = p.a + row * p.k + (TAIL ? p.k - lanes<T> : i);
  Vec<T> total[S][V] = {};
  for (int64_t j = 0; j < rows; ++j) {
    if (j < ahead.lines) __builtin_prefetch(ahead.at + 128 * j), __builtin_prefetch(ahead.at + 128 * j + 64);
    if constexpr (V < S) {  // the fewer operands wait in registers for the others
      Vec<T> aj[V];
      for (int v = 0; v < V; ++v) aj[v] = load(a + j * p.k + v * lanes<T>);
      for (int s = 0; s < S; ++s) {
        const Vec<T> ws = splat_unit<p.unit>(w + s * stride + j * p.unit);
        for (int v = 0; v < V; ++v) total[s][v] += aj[v] * ws;
      }
    } else {
      Vec<T> ws[S];
      for (int s = 0; s < S; ++s) ws[s] = splat_unit<p.unit>(w + s * stride + j * p.unit);
      for (int v = 0; v < V; ++v) {
        const Vec<T> aj = load(a + j * p.k + v * lanes<T>);
        for (int s = 0; s < S; ++s) total[s][v] += aj * ws[s];
      }
    }
  }
  for (int s = 0; s < S; ++s) {
    for (int v = 0; v < V; ++v) {
      T* out = running + s * p.padded + i + v * lanes<T>;
      store<T>(out, load(out) + total[s][v]);
    }
  }
  ahead.at += 128 * ahead.lines;
}

// The same for all columns and `count` weights, four at a time; strips of columns stay in cache for all of them.
template <class T, Field F>
PYRECON_INLINE void adjoint_rows(const Problem<T, F>& p, int64_t row, int64_t rows, int64_t count, const T* w,
                                 int64_t stride, T* running) {
  // One weight makes strips so wide that the processor's prefetcher follows them.
  const int64_t bytes = rows * p.k * sizeof(T),
                tiles = (p.full / (tile / (count < 4 ? count : 4)) + 1) * ((count + 3) / 4);
  Ahead ahead{reinterpret_cast<const char*>(p.a + row * p.k) + bytes, count > 1 ? bytes / 128 / tiles + 1 : 0};
  const auto strips = [&](auto s, int64_t side, int64_t begin, int64_t end) {
    constexpr int S = decltype(s)::value, strip = S == 1 ? 12 : tile / S;
    const T* ws = w + side * stride;
    T* out = running + side * p.padded;
    for (int64_t v = begin; v < end; v += strip) {
      with_count<strip>(end - v, [&](auto width) {
        adjoint_tile<S, decltype(width)::value, false>(p, row, rows, v * lanes<T>, ws, stride, out, ahead);
      });
    }
  };
  const int64_t strip = count > 4 ? tile / 4 : p.full;
  for (int64_t v = 0; v < p.full; v += strip)
    for (int64_t side = 0; side < count; side += 4)
      with_count<4>(count - side, [&](auto s) { strips(s, side, v, v + strip < p.full ? v + strip : p.full); });
  if (p.has_tail()) {
    for (int64_t side = 0; side < count; side += 4) {
      with_count<4>(count - side, [&](auto s) {
        adjoint_tile<decltype(s)::value, 1, true>(p, row, rows, p.full * lanes<T>, w + side * stride, stride,
                                                  running + side * p.padded, ahead);
      });
    }
  }
}

// p += A^T center and q += A^T offset for R rows from `row`, along whole rows: for one right-hand side this beats
// tiles. Meanwhile as many bytes are fetched from `next`.
template <int R, class T, Field F>
PYRECON_INLINE void adjoint_pair(const Problem<T, F>& problem, int64_t row, const T* center, const T* offset, T* p,
                                 T* q, const char* next) {
  constexpr int unit = Problem<T, F>::unit;
  const int64_t k = problem.k, full = problem.full * lanes<T>;
  const T* a = problem.a + row * k;
  Vec<T> centers[R], offsets[R];
  for (int j = 0; j < R; ++j) {
    centers[j] = splat_unit<unit>(center + j * unit);
    offsets[j] = splat_unit<unit>(offset + j * unit);
  }
  const auto columns = [&](int64_t i, int64_t at) {
    Vec<T> pi = load(p + i), qi = load(q + i);
    for (int j = 0; j < R; ++j) {
      const Vec<T> aj = load(a + j * k + at);
      pi += aj * centers[j];
      qi += aj * offsets[j];
    }
    store<T>(p + i, pi);
    store<T>(q + i, qi);
  };
  for (int64_t i = 0; i < full; i += lanes<T>) {
    for (int line = 0; line < R * PYRECON_VECTOR_BYTES; line += 64) __builtin_prefetch(next + line);
    next += R * PYRECON_VECTOR_BYTES;
    columns(i, i);
  }
  if (problem.has_tail()) columns(full, k - lanes<T>);
}

// Both products of the rows [begin, end) while they are in the first-level cache, and |A x - d - y|^2.
template <class T, Field F>
PYRECON_INLINE void one_pass(const Problem<T, F>& p, const T* sides, int64_t begin, int64_t end, const Sums<T>& sums,
                             double* squares) {
  T center[tile * 2], offset[tile * 2];
  const auto products = [&](auto count, int64_t row) {
    constexpr int rows = decltype(count)::value, R = rows == tile ? tile / 2 : 1;
    forward_rows(p, sides, row, row + rows);
    for (int64_t side = 0; side < p.sides; ++side) {
      const int64_t at = p.datum(side, row);
      const T *ax = p.ax + at, *d = p.d + at, *y = p.y + at;
      T square = 0;
      for (int i = 0; i < rows * p.unit; ++i) {
        const int j = i * p.sides_per_sample;
        center[i] = y[j] + d[j];
        offset[i] = ax[j] - d[j] - y[j];
        square += offset[i] * offset[i];
      }
      squares[side / p.sides_per_sample] += square;
      T* out = sums.running + side * 2 * p.padded;
      for (int j = 0; j < rows; j += R) {
        const char* next = reinterpret_cast<const char*>(p.a + (row + j) * p.k) + rows * p.k * sizeof(T);
        adjoint_pair<R>(p, row + j, center + j * p.unit, offset + j * p.unit, out, out + p.padded, next);
      }
    }
  };
  int64_t row = begin;
  for (; row + tile <= end; row += tile) {
    products(Int<tile>{}, row);
    if ((row - begin) % chunk < tile) sums.flush();
  }
  for (; row < end; ++row) products(Int<1>{}, row);
  sums.flush();
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

// Up to how many right-hand sides one pass over A beats two: measured with A in memory (54 MB) and in the last-level
// cache (7 MB), where the second pass costs no more than the second adjoint sum of the first.
constexpr int64_t few_sides_in_memory = 4, few_sides_in_cache = 1;
constexpr int64_t cached_bytes = int64_t{16} << 20;
constexpr int64_t flush_rows = 16 * chunk;  // float sums of chunks go on in double after this many rows

template <class T, Field F>
void step(const Problem<T, F>& p, int threads) {
  if (p.batch == 0) return;
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
  const bool in_cache = p.m * p.k * static_cast<int64_t>(sizeof(T)) <= cached_bytes;
  const bool once = p.multiply && p.sides <= (in_cache ? few_sides_in_cache : few_sides_in_memory);
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
    one_pass(p, sides.get(), begin, end, sums, squares);
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
      adjoint_rows(p, row, rows, p.sides, ws, chunk * p.unit, sums.running);
      if ((unflushed += rows) >= flush_rows) sums.flush(), unflushed = 0;
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
