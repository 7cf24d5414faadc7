#include "cpu/variation.hpp"

#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"

// The loops of this file are plain ones over multiples of 16 numbers, told to be free of dependences: compilers turn
// them into vectors of any width, square root and division included, and none has a remainder.
#define PYRECON_INDEPENDENT _Pragma("GCC ivdep")

namespace pyrecon::PYRECON_ISA {
namespace {

constexpr int64_t unit = 16;
constexpr int64_t small_image = 2048;        // pixels; up to this an image is one span
constexpr int64_t span_pixels = 1024;        // beyond, u exists only in a buffer of about this size
constexpr int64_t window_bytes = 256 << 10;  // of rows in flight: within the second-level cache of any server
constexpr int64_t tile_pixels = 8192;        // a thread gets no fewer
constexpr int most_tiles = 64, most_levels = 8;
constexpr int64_t certify_every = 5;  // iterations between two looks at the duality gap

PYRECON_INLINE int64_t padded(int64_t n) { return (n + unit - 1) / unit * unit; }
PYRECON_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
PYRECON_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
PYRECON_INLINE int64_t within(int64_t low, int64_t v, int64_t high) { return v < low ? low : v > high ? high : v; }
PYRECON_INLINE float root(float v) { return __builtin_sqrtf(v); }
PYRECON_INLINE double root(double v) { return __builtin_sqrt(v); }
PYRECON_INLINE float tiny(float) { return __FLT_MIN__; }
PYRECON_INLINE double tiny(double) { return __DBL_MIN__; }

// How the work is cut. An image is worked on in `levels` iterations at a time: as a span of rows goes through all of
// them, one row further up in each, it comes from memory once. Threads share the batch; a batch too short for that
// shares each image, in tiles of rows that overlap by `levels` rows on both sides, so that tiles meet once per
// `levels` iterations: one that is not given its processor would stop the others at every meeting.
//
// A tile lies in scratch as a plane for each array and channel, rows `pitch` apart, after a row of zeros. What is not
// the image, and the last row and column of q and s, is zero and stays zero: so the neighbours above and to the left
// are shifts of the flat plane, even across its rows.
struct Layout {
  int64_t height, width, pitch, span;  // span: rows of u held at once
  int slots, tiles, levels;            // images at once, tiles of an image, iterations between two meetings
  int64_t guard, plane, u_plane, tile;

  Layout(const TvShape& shape, int threads, int64_t number_bytes) : height(shape.height), width(shape.width) {
    const int64_t pixels = height * width;
    const bool small = pixels <= small_image;
    pitch = small ? width : padded(width);
    span = small ? height : larger(1, span_pixels / pitch);
    const bool by_image = shape.batch % threads == 0 || shape.batch >= 4 * threads || pixels < 2 * tile_pixels;
    slots = by_image ? share_count(threads, shape.batch, 1) : 1;
    tiles = by_image ? 1 : share_count(threads, smaller(smaller(most_tiles, height), pixels / tile_pixels), 1);
    const int64_t row_bytes = 5 * shape.channels * pitch * number_bytes;
    levels = small ? 1 : static_cast<int>(within(1, window_bytes / row_bytes - span, most_levels));
    if (tiles > 1) levels = static_cast<int>(within(1, height / tiles / 8, levels));
    const int64_t rows = tiles == 1 ? height : height / tiles + 1 + 2 * levels;
    guard = padded(pitch + 1);
    plane = guard + padded(rows * pitch);
    u_plane = padded((span + 1) * pitch) + 2 * unit;
    tile = shape.channels * (5 * plane + u_plane + levels * padded(pitch)) + padded(span * pitch);
  }
};

template <class T>
struct Step {
  T q, d, z, old_q, old_d;
  explicit Step(const double* a) : q(T(a[0])), d(T(a[1])), z(T(a[2])), old_q(T(a[3])), old_d(T(a[4])) {}
};

// Rows [first, first + rows) of an image, of which [begin, end) are its own and the others a neighbour's.
template <class T, int C, bool Isotropic, bool Nonneg>
struct Tile {
  const Layout& at;
  int64_t begin, end, first, rows;
  T weight, floor;
  T *x, *q, *s;  // planes [channel], [axis][channel], [axis][channel]
  T* u;          // a span of u and the row after it
  T* carried;    // per level, the first row of u that its next span needs
  T* mask;       // 1 where a pixel has a right neighbour, for one span

  Tile(const Layout& layout, T* scratch, int index, T w) : at(layout), weight(w), floor(w > tiny(w) ? w : tiny(w)) {
    begin = at.height * index / at.tiles, end = at.height * (index + 1) / at.tiles;
    first = larger(0, begin - at.levels), rows = smaller(at.height, end + at.levels) - first;
    x = scratch + index * at.tile + at.guard;
    q = x + C * at.plane;
    s = q + 2 * C * at.plane;
    u = s + 2 * C * at.plane - at.guard;
    carried = u + C * at.u_plane;
    mask = carried + at.levels * C * padded(at.pitch);
  }

  // Brings in the image and its first dual, projected (zero where there is none); returns |x|^2 on its own rows.
  double take(const T* image, const T* first_dual) const {
    for (int i = 0; i < 5 * C; ++i) {
      T* plane = x - at.guard + i * at.plane;
      std::memset(plane, 0, at.guard * sizeof(T));
      std::memset(plane + at.plane - unit, 0, unit * sizeof(T));
    }
    std::memset(u, 0, (mask + padded(at.span * at.pitch) - u) * sizeof(T));
    for (int64_t i = 0; i < at.span; ++i)
      for (int64_t j = 0; j + 1 < at.width; ++j) mask[i * at.pitch + j] = 1;
    double energy = 0;
    for (int64_t i = 0; i < rows; ++i) {
      const double row_energy = take_row(i, image, first_dual);
      if (first + i >= begin && first + i < end) energy += row_energy;
    }
    return energy;
  }

  // `n` iterations, of which row r takes the g-th when row r + 1 has taken the one before.
  void iterate(const double* schedule, int n) const {
    for (int64_t front = 0; front < rows + n - 1; front += at.span)
      for (int g = 0; g < n; ++g) {
        const int64_t low = within(0, front - g, rows), high = within(0, front - g + at.span, rows);
        if (low == high) continue;
        T* row = carried + g * C * padded(at.pitch);
        make_image(low, high, low > 0 ? row : nullptr);
        advance(Step<T>(schedule + 5 * g), low, high);
        for (int c = 0; high < rows && c < C; ++c)
          std::memcpy(row + c * padded(at.pitch), u + c * at.u_plane + (high - low) * at.pitch, at.pitch * sizeof(T));
      }
  }

  // The neighbours' rows as they are now.
  void refresh(const Tile& above, const Tile& below) const {
    copy_rows(above, first, begin);
    copy_rows(below, end, first + rows);
  }

  // The duality gap of its own rows: the sum over pixels of weight |D u| - <q, D u>, no term of which is negative.
  double gap() const {
    double total = 0;
    for (int64_t low = begin - first; low < end - first; low += at.span) {
      const int64_t high = smaller(low + at.span, end - first), n = (high - low) * at.pitch;
      make_image(low, high, nullptr);
      const T* qb = q + low * at.pitch;
      T lane[unit] = {};
      for (int64_t start = 0; start < n; start += unit) PYRECON_INDEPENDENT
      for (int64_t l = 0; l < unit; ++l) {
        const int64_t p = start + l;
        T square[2] = {0, 0}, inner = 0;
        for (int c = 0; c < C; ++c) {
          const T* uc = u + c * at.u_plane + p;
          const T d[2] = {uc[at.pitch] - uc[0], (uc[1] - uc[0]) * mask[p]};
          for (int k = 0; k < 2; ++k) {
            square[k] += d[k] * d[k];
            inner += d[k] * qb[(k * C + c) * at.plane + p];
          }
        }
        const T length = Isotropic ? root(square[0] + square[1]) : root(square[0]) + root(square[1]);
        lane[l] += weight * length - inner;
      }
      for (T part : lane) total += part;
    }
    return total;
  }

  // Writes its own rows of the image and of the dual.
  void give(T* out, T* dual) const {
    for (int64_t low = begin - first; low < end - first; low += at.span) {
      const int64_t high = smaller(low + at.span, end - first);
      make_image(low, high, nullptr);
      for (int64_t i = low; i < high; ++i)
        for (int c = 0; c < C; ++c) {
          const T* row = u + c * at.u_plane + (i - low) * at.pitch;
          for (int64_t j = 0; j < at.width; ++j) out[((first + i) * at.width + j) * C + c] = row[j];
          for (int k = 0; k < 2; ++k) {
            const T* field = q + (k * C + c) * at.plane + i * at.pitch;
            T* to = dual + ((k * at.height + first + i) * at.width) * C + c;
            for (int64_t j = 0; j < at.width; ++j) to[j * C] = field[j];
          }
        }
    }
  }

 private:
  // u = x - D^T q on the rows from low to high, high included; `known`, if given, is the first of them.
  void make_image(int64_t low, int64_t high, const T* known) const {
    const int64_t skip = known != nullptr, count = high - low + (high < rows);
    const int64_t start = (low + skip) * at.pitch, n = padded((count - skip) * at.pitch);
    for (int c = 0; c < C; ++c) {
      T* uc = u + c * at.u_plane;
      if (known != nullptr) std::memcpy(uc, known + c * padded(at.pitch), at.pitch * sizeof(T));
      const T* xc = x + c * at.plane + start;
      const T* down = q + c * at.plane + start;
      const T* above = down - at.pitch;
      const T* right = q + (C + c) * at.plane + start;
      T* o = uc + skip * at.pitch;
      PYRECON_INDEPENDENT
      for (int64_t p = 0; p < n; ++p) {
        const T v = xc[p] + (down[p] - above[p]) + (right[p] - right[p - 1]);
        o[p] = Nonneg && v < 0 ? T(0) : v;
      }
      if (high == rows)  // no difference past the last row, nor in what rounds it up to a multiple of 16
        for (int64_t p = (high - low) * at.pitch; p < (high - low + 1) * at.pitch + unit; ++p) uc[p] = uc[p - at.pitch];
    }
  }

  // z = z * min(1, w / |z|), and 0 for w = 0; least is w, or the least positive number.
  PYRECON_INLINE void project(T (&z)[2][C], T w, T least) {
    T square[2] = {z[0][0] * z[0][0], z[1][0] * z[1][0]};
    for (int c = 1; c < C; ++c)
      for (int k = 0; k < 2; ++k) square[k] += z[k][c] * z[k][c];
    if (Isotropic) square[0] = square[1] = square[0] + square[1];
    for (int k = 0; k < 2; ++k) {
      // Root and quotient take a quarter of an iteration on a Zen 3; an inverse root by Newton steps takes longer.
      const T length = root(square[k]);
      const T scale = w / (length > least ? length : least);
      for (int c = 0; c < C; ++c) z[k][c] *= scale;
    }
  }

  // One iteration on the rows [low, high), u being made.
  void advance(const Step<T>& step, int64_t low, int64_t high) const {
    const int64_t n = padded((high - low) * at.pitch), pitch = at.pitch, plane = at.plane, u_plane = at.u_plane;
    T *qb = q + low * pitch, *sb = s + low * pitch;
    const T *ub = u, *m = mask, w = weight, least = floor;
    const Step<T> a = step;
    PYRECON_INDEPENDENT
    for (int64_t p = 0; p < n; ++p) {
      T z[2][C];
      for (int c = 0; c < C; ++c) {
        const T here = ub[c * u_plane + p];
        const T d[2] = {ub[c * u_plane + p + pitch] - here, (ub[c * u_plane + p + 1] - here) * m[p]};
        for (int k = 0; k < 2; ++k) {
          const int64_t i = (k * C + c) * plane + p;
          z[k][c] = a.q * qb[i] + (a.d * d[k] + sb[i]);
          sb[i] = a.z * z[k][c] - (a.old_q * qb[i] + a.old_d * d[k]);
        }
      }
      project(z, w, least);
      for (int k = 0; k < 2; ++k)
        for (int c = 0; c < C; ++c) qb[(k * C + c) * plane + p] = z[k][c];
    }
  }

  double take_row(int64_t i, const T* image, const T* first_dual) const {
    const int64_t pixels = at.height * at.width, from = (first + i) * at.width, row = i * at.pitch;
    double energy = 0;
    for (int c = 0; c < C; ++c) {
      T* xr = x + c * at.plane + row;
      std::memset(xr + at.width, 0, (at.pitch - at.width) * sizeof(T));
      for (int64_t j = 0; j < at.width; ++j) {
        xr[j] = image[(from + j) * C + c];
        energy += static_cast<double>(xr[j]) * xr[j];
      }
      for (int k = 0; k < 2; ++k) {
        T* qr = q + (k * C + c) * at.plane + row;
        std::memset(qr, 0, at.pitch * sizeof(T));
        std::memset(s + (k * C + c) * at.plane + row, 0, at.pitch * sizeof(T));
        if (first_dual == nullptr || (k == 0 && first + i + 1 == at.height)) continue;
        for (int64_t j = 0; j < at.width - k; ++j) qr[j] = first_dual[(k * pixels + from + j) * C + c];
      }
    }
    if (first_dual != nullptr)
      for (int64_t j = 0; j < at.width; ++j) {
        T z[2][C];
        for (int k = 0; k < 2; ++k)
          for (int c = 0; c < C; ++c) z[k][c] = q[(k * C + c) * at.plane + row + j];
        project(z, weight, floor);
        for (int k = 0; k < 2; ++k)
          for (int c = 0; c < C; ++c) q[(k * C + c) * at.plane + row + j] = z[k][c];
      }
    return energy;
  }

  void copy_rows(const Tile& other, int64_t from, int64_t to) const {
    for (int i = 0; i < 4 * C; ++i)
      std::memcpy(q + i * at.plane + (from - first) * at.pitch,
                  other.q + i * at.plane + (from - other.first) * at.pitch, (to - from) * at.pitch * sizeof(T));
  }
};

// The prox of one image; returns the iterations it took.
template <class Tile, class T>
int32_t solve(const Layout& at, T* scratch, const T* x, T weight, const T* first_dual, T* u, T* dual,
              const TvOptions& options) {
  const auto tile = [&](int64_t i) { return Tile(at, scratch, static_cast<int>(within(0, i, at.tiles - 1)), weight); };
  const auto each = [&](const auto& work) {
    parallel_shares(at.tiles, at.tiles, [&](int i, int64_t, int64_t) { work(i); });
  };
  double part[most_tiles] = {};
  const auto total = [&] {
    double sum = 0;
    for (int i = 0; i < at.tiles; ++i) sum += part[i];
    return sum;
  };
  each([&](int i) { part[i] = tile(i).take(x, first_dual); });
  const double enough = options.tol * options.tol * total();
  int64_t k = 0;
  while (k < options.iterations) {
    int64_t n = smaller(at.levels, options.iterations - k);
    if (options.tol > 0) {
      n = smaller(n, certify_every - k % certify_every);
      if (k % certify_every == 0) {
        each([&](int i) { part[i] = tile(i).gap(); });
        if (total() <= enough) break;
      }
    }
    each([&](int i) { tile(i).iterate(options.schedule + 5 * k, static_cast<int>(n)); });
    if (at.tiles > 1) each([&](int i) { tile(i).refresh(tile(i - 1), tile(i + 1)); });
    k += n;
  }
  each([&](int i) { tile(i).give(u, dual); });
  return static_cast<int32_t>(k);
}

template <class T, int C, bool Isotropic, bool Nonneg>
void run(const T* x, const T* weight, const T* first_dual, T* u, T* dual, int32_t* count, T* scratch,
         const TvShape& shape, const TvOptions& options) {
  const Layout at(shape, options.threads, sizeof(T));
  const int64_t image = C * shape.height * shape.width;
  parallel_shares(at.slots, shape.batch, [&](int slot, int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      count[b] = solve<Tile<T, C, Isotropic, Nonneg>>(at, scratch + slot * at.tiles * at.tile, x + b * image, weight[b],
                                                      first_dual ? first_dual + 2 * b * image : nullptr, u + b * image,
                                                      dual + 2 * b * image, options);
  });
}

// x - t above t, x + t below -t, and 0 between; one level for all (Stride 0) or one each. NaN stays NaN.
template <int Stride, bool Nonneg, class T>
void shrink_real(const T* x, const T* t, T* out, int64_t n) {
  PYRECON_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const T level = t[Stride * i];
    const T above = (x[i] < level ? level : x[i]) - level;
    const T below = (x[i] > -level ? -level : x[i]) + level;
    out[i] = Nonneg ? above : above + below;
  }
}

template <int Stride, class T>
void shrink_complex(const T* x, const T* t, T* out, int64_t n) {
  PYRECON_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const T re = x[2 * i], im = x[2 * i + 1], level = t[Stride * i];
    const T length = root(re * re + im * im);
    const T scale = length <= level ? T(0) : 1 - level / length;
    out[2 * i] = re * scale;
    out[2 * i + 1] = im * scale;
  }
}

}  // namespace

int64_t tv_prox_scratch(const TvShape& shape, int threads, int64_t number_bytes) {
  const Layout at(shape, threads, number_bytes);
  return at.slots * at.tiles * at.tile;
}

template <class T>
void tv_prox(const T* x, const T* weight, const T* first_dual, T* u, T* dual, int32_t* count, T* scratch,
             const TvShape& shape, const TvOptions& options) {
  auto* chosen = &run<T, 1, true, false>;
  if (shape.channels == 2)
    chosen = options.isotropic ? &run<T, 2, true, false> : &run<T, 2, false, false>;
  else if (options.nonneg)
    chosen = options.isotropic ? &run<T, 1, true, true> : &run<T, 1, false, true>;
  else if (!options.isotropic)
    chosen = &run<T, 1, false, false>;
  chosen(x, weight, first_dual, u, dual, count, scratch, shape, options);
}

template <class T>
void soft_threshold(const T* x, const T* threshold, T* out, int64_t rows, int64_t n, int64_t channels, int64_t t_row,
                    int64_t t_column, bool nonneg, int threads) {
  if (rows * n == 0) return;
  // Shares of the flat range: one long row and many short ones go the same way.
  parallel_for(threads, rows * n, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin / n; begin < end; ++row) {
      const int64_t stop = smaller(end, (row + 1) * n), count = stop - begin;
      const T* t = threshold + row * t_row + (begin - row * n) * t_column;
      const T* v = x + begin * channels;
      T* o = out + begin * channels;
      if (channels == 2)
        t_column ? shrink_complex<1>(v, t, o, count) : shrink_complex<0>(v, t, o, count);
      else if (nonneg)
        t_column ? shrink_real<1, true>(v, t, o, count) : shrink_real<0, true>(v, t, o, count);
      else
        t_column ? shrink_real<1, false>(v, t, o, count) : shrink_real<0, false>(v, t, o, count);
      begin = stop;
    }
  });
}

#define PYRECON_INSTANTIATE(T)                                                                                 \
  template void tv_prox(const T*, const T*, const T*, T*, T*, int32_t*, T*, const TvShape&, const TvOptions&); \
  template void soft_threshold(const T*, const T*, T*, int64_t, int64_t, int64_t, int64_t, int64_t, bool, int);
PYRECON_INSTANTIATE(float)
PYRECON_INSTANTIATE(double)

}  // namespace pyrecon::PYRECON_ISA
