#include "cpu/radon.hpp"

#include "cpu/lookup.hpp"
#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"

// An image lies in scratch twice, by rows and by columns, so that every ray goes from row to row of one of these
// planes.
//
// Forward, lanes are neighbouring rays: in one row they need numbers of one window. Places are computed in double once
// per strip of 16 rows and in T from there, relative to the window: to 16 or 32 steps of rounding of small numbers.
//
// Backward, lanes are neighbouring pixels of a row. Which ray is nearest is interpolated from the corners of a tile of
// `lanes` x 32 pixels; that need not be exact, as the place of each ray is looked up and its weight follows from that.
// Rays that are nearer to each other than pixels, or otherwise unlike a scanner's, are added one at a time.

#define PYRECON_INDEPENDENT _Pragma("GCC ivdep")

namespace pyrecon::PYRECON_ISA {
namespace {

constexpr int64_t strip = 16, tall = 32;  // rows whose places follow from the first one's, forward and back
constexpr int64_t margin = 96;            // zeros beside a row: a window starts at most 78 before it
constexpr double fixed = 4294967296.0;    // places of windows are integers, 32 bits behind the point
constexpr double slack = 1e-4;            // of a pixel, beyond all rounding
constexpr bool ways[2] = {true, false};

PYRECON_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
PYRECON_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
PYRECON_INLINE double least(double a, double b) { return a < b ? a : b; }
PYRECON_INLINE double most(double a, double b) { return a > b ? a : b; }
PYRECON_INLINE int64_t floor_of(double v) {
  const int64_t i = static_cast<int64_t>(v);
  return i - (static_cast<double>(i) > v);
}
PYRECON_INLINE int64_t fixed_point(double v) { return static_cast<int64_t>(v * fixed); }
PYRECON_INLINE int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

// rays [first, last) of a view that go the same way
template <class Body>
PYRECON_INLINE void for_segments(const uint8_t* along, bool way, int64_t n, const Body& body) {
  for (int64_t first = 0; first < n;) {
    const void* other = std::memchr(along + first, !along[first], n - first);
    const int64_t last = other != nullptr ? static_cast<const uint8_t*>(other) - along : n;
    if ((along[first] != 0) == way) body(first, last);
    first = last;
  }
}

// --- forward -----------------------------------------------------------------------------------------------------
// One of the two planes: rows `pitch` apart, row r starts at at + r * pitch, `margin` zeros on both sides.
template <class T>
struct Plane {
  T* at;
  int64_t rows, columns, pitch;

  Plane(T* memory, int64_t r, int64_t c) : at(memory + margin), rows(r), columns(c), pitch(c + 2 * margin) {}
  static int64_t size(int64_t r, int64_t c) { return r * (c + 2 * margin); }
};

template <class T>
void lay(const T* image, int64_t height, int64_t width, const Plane<T>& down, const Plane<T>& across, int64_t begin,
         int64_t end) {
  // Rows [begin, end) of both planes together, the first plane's first.
  for (int64_t r = begin; r < smaller(end, height); ++r) {
    T* to = down.at + r * down.pitch - margin;
    std::memset(to, 0, down.pitch * sizeof(T));
    std::memcpy(to + margin, image + r * width, width * sizeof(T));
  }
  for (int64_t r = larger(begin, height) - height; r < end - height; r += 16) {
    const int64_t last = smaller(r + 16, end - height);
    T* to = across.at + r * across.pitch;
    std::memset(to - margin, 0, (last - r) * across.pitch * sizeof(T));
    for (int64_t i = 0; i < height; ++i)
      for (int64_t j = r; j < last; ++j) to[(j - r) * across.pitch + i] = image[i * width + j];
  }
}

template <class T, int Pairs>
PYRECON_INLINE Vec<T> sum_windowed(const T* p, int64_t pitch, int64_t rows, Vec<T> start, Vec<T> slope, int64_t place,
                                   int64_t step) {
  Vec<T> total = {}, k = {};
  for (int64_t r = 0; r < rows; ++r, p += pitch, place += step, k += T(1)) {
    const int64_t base = place >> 32;
    const Vec<T> at = start + slope * k, before = floored<T>(at), f = at - before;
    const Ints<T> i = truncated<T>(before) - static_cast<decltype(Ints<T>{}[0] + 0)>(base);
    const Window<T, Pairs> window(p + base);
    const Vec<T> a = window.at(i), b = window.at(i + 1);
    total += a + f * (b - a);
  }
  return total;
}

// Lane by lane; start is relative to `base`, as is p.
template <class T>
Vec<T> sum_lanes(const T* p, int64_t pitch, int64_t rows, int64_t columns, int64_t base, Vec<T> start, Vec<T> slope) {
  Vec<T> total = {}, k = {};
  for (int64_t r = 0; r < rows; ++r, p += pitch, k += T(1)) {
    const Vec<T> at = start + slope * k, before = floored<T>(at), f = at - before;
    for (int l = 0; l < lanes<T>; ++l) {
      const T low = T(-2 - base), high = T(columns - base);
      const T v = before[l] < low ? low : before[l] > high ? high : before[l];
      const T* q = p + static_cast<int64_t>(v);
      total[l] += q[0] + f[l] * (q[1] - q[0]);
    }
  }
  return total;
}

template <class T>
void project(const Plane<T>& plane, const double* start, const double* slope, const double* weight, int64_t n, T* out) {
  constexpr int64_t L = lanes<T>;
  for (int64_t d = 0; d < n; d += L) {
    const int64_t count = smaller(L, n - d);
    alignas(64) double s[L], b[L];
    alignas(64) T rounded[L];
    double low[2] = {1e300, 1e300}, high[2] = {-1e300, -1e300};  // at the first and the last row
    for (int64_t l = 0; l < L; ++l) {
      const int64_t at = d + smaller(l, count - 1);
      s[l] = start[at], b[l] = slope[at], rounded[l] = T(b[l]);
      const double ends[2] = {s[l], s[l] + b[l] * static_cast<double>(plane.rows - 1)};
      for (int e = 0; e < 2; ++e) low[e] = least(low[e], ends[e]), high[e] = most(high[e], ends[e]);
    }
    const Vec<T> slopes = load<T>(rounded);
    // No ray is outside of the lines from end to end of these.
    const double per_row = plane.rows > 1 ? 1.0 / static_cast<double>(plane.rows - 1) : 0.0;
    const double low_step = (low[1] - low[0]) * per_row, high_step = (high[1] - high[0]) * per_row;
    Vec<T> total = {};
    for (int64_t r = 0; r < plane.rows; r += strip) {
      const int64_t rows = smaller(strip, plane.rows - r);
      const double first = static_cast<double>(r), more = static_cast<double>(rows - 1);
      const double l0 = low[0] + low_step * first, l1 = l0 + low_step * more;
      const double h0 = high[0] + high_step * first, h1 = h0 + high_step * more;
      if (most(h0, h1) <= -1 || least(l0, l1) >= static_cast<double>(plane.columns)) continue;
      const double span = most(h0 - l0, h1 - l1) + 2 + 10 * slack;
      const bool windowed = permutes<T> && span <= 4 * L;
      // Rays that leave the window may be anywhere; where they are in the image they are near it.
      const int64_t base = windowed ? floor_of(least(l0, l1)) - 1 : 0;
      for (int64_t l = 0; l < L; ++l) rounded[l] = T(s[l] + b[l] * first - static_cast<double>(base));
      const Vec<T> starts = load<T>(rounded);
      const T* p = plane.at + r * plane.pitch + base;
      const int64_t place = fixed_point(l0 - static_cast<double>(base) - slack), step = fixed_point(low_step);
      if (!windowed)
        total += sum_lanes<T>(p, plane.pitch, rows, plane.columns, base, starts, slopes);
      else if (span <= 2 * L)
        total += sum_windowed<T, 1>(p, plane.pitch, rows, starts, slopes, place, step);
      else
        total += sum_windowed<T, 2>(p, plane.pitch, rows, starts, slopes, place, step);
    }
    for (int64_t l = 0; l < count; ++l) out[d + l] = T(weight[d + l]) * total[l];
  }
}

// --- transpose -----------------------------------------------------------------------------------------------------
constexpr int64_t guard = 80;  // rays beside the outermost ones, that carry nothing

// Where between the rays a place lies: p grows from index -guard + 1 to n + guard - 2.
PYRECON_INLINE double invert(const double* p, int64_t n, double j, double guess) {
  for (int tries = 0; tries < 60; ++tries) {
    int64_t i = floor_of(guess);
    i = i < 1 - guard ? 1 - guard : i > n + guard - 3 ? n + guard - 3 : i;
    const double low = p[i], high = p[i + 1];
    const double found = static_cast<double>(i) + (j - low) / (high - low);
    if ((j >= low && j <= high) || (j < low && i == 1 - guard) || (j > high && i == n + guard - 3)) return found;
    // Newton steps from ray to ray end where places grow evenly; where they do not, one ray at a time does.
    guess = tries < 20 ? found : static_cast<double>(i + (j > high ? 1 : -1));
  }
  return guess;
}

// What a thread needs for the rays of one view over one strip of rows, in the order of their places.
template <class T>
struct Fan {
  double *place, *last_place;           // at the first row and at the last
  T *whole, *fraction, *slope, *value;  // the integer before the place and what is beyond it
  int64_t n = 0;
  bool parallel = false;

  Fan(double* memory, int64_t detectors) {
    const int64_t size = room(detectors);
    place = memory + guard, last_place = place + size;
    T** parts[4] = {&whole, &fraction, &slope, &value};
    for (int i = 0; i < 4; ++i) *parts[i] = reinterpret_cast<T*>(memory + (2 + i) * size) + guard;
  }
  static int64_t room(int64_t detectors) { return padded(detectors + 2 * guard + 64); }
  static int64_t size(int64_t detectors) { return 6 * room(detectors); }  // in doubles

  // Takes rays in; false if their places do not grow with their number, or with it the other way round.
  bool take(const double* start, const double* slopes, const double* weight, const T* sino, int64_t first_row,
            int64_t rows) {
    const int64_t count = n;
    if (count < 2) return false;
    const double first = static_cast<double>(first_row), more = static_cast<double>(rows - 1);
    const auto at = [&](int64_t d, double row) { return start[d] + slopes[d] * (first + row); };
    const bool up = at(count - 1, 0) > at(0, 0);
    if (up != (at(count - 1, more) > at(0, more))) return false;
    const bool grows =
        up ? read<1>(start, slopes, weight, sino, first, more)
           : read<-1>(start + count - 1, slopes + count - 1, weight + count - 1, sino + count - 1, first, more);
    if (!grows) return false;
    extend(0, -1), extend(count - 1, 1);
    return true;
  }

  // Whether the ray at a pixel changes evenly from row to row: near a source it does not.
  bool even(int64_t rows) const {
    bool fits = true;
    for (int64_t m = 0; m < n; m += n - 1) {
      const double at = (place[m] + last_place[m]) * 0.5, guess = static_cast<double>(m);
      const double off = 0.5 * (invert(place, n, at, guess) + invert(last_place, n, at, guess)) - guess;
      fits &= off < 0.15 && off > -0.15;
    }
    return fits || rows == 1;
  }

 private:
  template <int Step>
  bool read(const double* start, const double* slopes, const double* weight, const T* sino, double first, double more) {
    double *at = place, *last = last_place;
    T *w = whole, *f = fraction, *b = slope, *v = value;
    PYRECON_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
      const int64_t d = Step * i;
      const double p = start[d] + slopes[d] * first, below = __builtin_floor(p);
      at[i] = p, last[i] = p + slopes[d] * more, w[i] = T(below), f[i] = T(p - below);
      b[i] = T(slopes[d]), v[i] = T(weight[d]) * sino[d];
    }
    int64_t wrong = 0, unlike = 0;
    for (int64_t i = 1; i < n; ++i) {
      wrong += !(at[i] > at[i - 1]) + !(last[i] > last[i - 1]);
      unlike += b[i] != b[0];
    }
    parallel = unlike == 0;
    return wrong == 0;
  }

  // Goes on as the outermost two rays do.
  void extend(int64_t edge, int64_t step) {
    const double gap = place[edge] - place[edge - step], last_gap = last_place[edge] - last_place[edge - step];
    for (int64_t k = 1; k <= guard - 1; ++k) {
      const int64_t i = edge + step * k;
      const double more = static_cast<double>(k);
      place[i] = place[edge] + more * gap, last_place[i] = last_place[edge] + more * last_gap;
      whole[i] = whole[edge], fraction[i] = fraction[edge] + T(more * gap), slope[i] = slope[edge], value[i] = 0;
    }
  }
};

// Pixels [j, j + lanes) of `rows` rows, from tables that hold the rays from number `first` on: places relative to j.
template <class T, int Pairs, int Reach, bool Bracketed, bool Parallel>
PYRECON_INLINE void add_tile(T* out, int64_t pitch, int64_t rows, const T* places, const T* slope, const T* value,
                             int64_t left, int64_t left_step, T width, T width_step) {
  constexpr int64_t L = lanes<T>;
  const Vec<T> lane = counted<T>();
  typedef decltype(Ints<T>{}[0] + 0) Int;
  const Vec<T> first_step = lane * (width / L), more_step = lane * (width_step / L);
  const T shared = slope[(left >> 32) - Reach];
  Vec<T> k = {};
  for (int64_t r = 0; r < rows; ++r, out += pitch, left += left_step, k += T(1)) {
    const int64_t base = (left >> 32) - Reach;
    const T offset = T(Reach) + T(0.5) + T(static_cast<int32_t>((left & 0xffffffff) >> 1)) * T(2 / fixed);
    const Ints<T> nearest = truncated<T>(offset + (first_step + more_step * k));
    Window<T, Pairs> place(places + base);
    const Window<T, Pairs> values(value + base);
    if constexpr (Parallel) {
      for (int i = 0; i < 2 * Pairs; ++i) place.part[i] = place.part[i] + shared * k;
    } else {
      const Window<T, Pairs> slopes(slope + base);
      for (int i = 0; i < 2 * Pairs; ++i) place.part[i] = place.part[i] + slopes.part[i] * k;
    }
    Vec<T> total = load<T>(out);
    const auto add = [&](Ints<T> i, Vec<T> distance) {
      total += positive<T>(T(1) - magnitude<T>(distance)) * values.at(i);
    };
    const Vec<T> distance = place.at(nearest) - lane;
    add(nearest, distance);
    if constexpr (Bracketed) {
      const Ints<T> other = nearest + (distance <= 0 ? Ints<T>{} + Int(1) : Ints<T>{} - Int(1));
      add(other, place.at(other) - lane);
    } else {
      for (int i = 1; i <= Reach; ++i) {
        add(nearest - Int(i), place.at(nearest - Int(i)) - lane);
        add(nearest + Int(i), place.at(nearest + Int(i)) - lane);
      }
    }
    store<T>(out, total);
  }
}

// The same for any rays [first, last): one at a time.
template <class T>
void add_rays(T* out, int64_t pitch, int64_t rows, int64_t columns, const Fan<T>& fan, int64_t first, int64_t last,
              int64_t j) {
  for (int64_t i = larger(first, 0); i < smaller(last, fan.n); ++i) {
    const T start = fan.fraction[i] + (fan.whole[i] - T(j));
    T* row = out;
    for (int64_t r = 0; r < rows; ++r, row += pitch) {
      const T at = start + fan.slope[i] * T(r);
      if (!(at > -1 && at < T(columns))) continue;
      const int64_t before = floor_of(at);
      const T f = at - T(before);
      if (before >= 0) row[before] += (1 - f) * fan.value[i];
      if (before + 1 < columns) row[before + 1] += f * fan.value[i];
    }
  }
}

template <class T>
void add_tiles(T* out, int64_t pitch, int64_t rows, int64_t columns, const Fan<T>& fan) {
  constexpr int64_t L = lanes<T>;
  constexpr int64_t held = 192;
  alignas(64) T places[held + 4 * L];
  const double n = static_cast<double>(fan.n);
  const double mean = (fan.place[fan.n - 1] - fan.place[0]) / (n - 1);
  double top = invert(fan.place, fan.n, 0, -fan.place[0] / mean);
  double bottom = invert(fan.last_place, fan.n, 0, top);
  double top_width = L / mean, bottom_width = top_width;
  const double per_row = rows > 1 ? 1.0 / static_cast<double>(rows - 1) : 0.0;
  for (int64_t j = 0; j < columns; j += L) {
    const double right = static_cast<double>(j + L);
    const double top_end = invert(fan.place, fan.n, right, top + top_width);
    const double bottom_end = invert(fan.last_place, fan.n, right, bottom + bottom_width);
    top_width = top_end - top, bottom_width = bottom_end - bottom;
    const double low = least(top, bottom), high = most(top_end, bottom_end);
    const double widest = most(top_width, bottom_width);
    double dense = widest / L;  // most rays per pixel
    const double left = top, lower_left = bottom, left_step = (bottom - top) * per_row;
    const double width = top_width, width_step = (bottom_width - top_width) * per_row;
    top = top_end, bottom = bottom_end;
    const int64_t end = fan.n - 1;
    const double before = static_cast<double>(j - 1);  // what is up to here or from `right` on reaches no pixel
    if (most(fan.place[end], fan.last_place[end]) <= before || least(fan.place[0], fan.last_place[0]) >= right)
      continue;
    const int64_t first = floor_of(low) - 6, count = floor_of(high) + 7 - first;
    bool even = first > 1 - guard && first + count + 4 * L < fan.n + guard - 1 && count <= held;
    if (even) {
      const auto spacing = [&](const double* p, double at) {
        const int64_t i = floor_of(at);
        return p[i + 1] - p[i];
      };
      // The rays that reach the tile's pixels from outside of it are three at most on each side.
      double low_gap = least(least(spacing(fan.place, left - 3), spacing(fan.place, top + 3)),
                             least(spacing(fan.last_place, lower_left - 3), spacing(fan.last_place, bottom + 3)));
      if (!fan.parallel) {  // in between gaps are parabolas: no smaller than the least of three by a seventh of the
                            // range
        const double high_gap =
            most(most(spacing(fan.place, left - 3), spacing(fan.place, top + 3)),
                 most(spacing(fan.last_place, lower_left - 3), spacing(fan.last_place, bottom + 3)));
        low_gap = least(low_gap, least(spacing(fan.place, left + 0.5 * width),
                                       spacing(fan.last_place, lower_left + 0.5 * bottom_width)));
        low_gap -= 0.15 * (high_gap - low_gap);
      }
      dense = 1 / low_gap;
      // How far from `column` the ray is that is taken for the nearest there, in rays; down: 0 at the first row, 1 at
      // the last.
      const auto off = [&](double across, double down) {
        const double ray = left + across * width + down * (lower_left - left + across * (bottom_width - width));
        const int64_t i = floor_of(ray);
        const auto at = [&](const double* p) { return p[i] + (ray - static_cast<double>(i)) * (p[i + 1] - p[i]); };
        const double there = at(fan.place) + down * (at(fan.last_place) - at(fan.place));
        const double by = (there - (static_cast<double>(j) + across * L)) * dense;
        return by < 0 ? -by : by;
      };
      even = off(0.5, 0) < 0.2;
      if (!fan.parallel) even &= most(most(off(0.5, 0.5), off(0.5, 1)), most(off(0, 0.5), off(1, 0.5))) < 0.2;
    }
    if (!permutes<T> || !even || !(dense > 0 && dense <= 3)) {
      const double from =
          least(invert(fan.place, fan.n, before, left), invert(fan.last_place, fan.n, before, lower_left));
      add_rays<T>(out + j, pitch, rows, smaller(L, columns - j), fan, floor_of(from), floor_of(high) + 2, j);
      continue;
    }
    for (int64_t i = 0; i < count + 4 * L; i += L) {
      const int64_t m = smaller(first + i, fan.n + guard - 1 - L);
      store<T>(places + i, load<T>(fan.fraction + m) + (load<T>(fan.whole + m) - T(j)));
    }
    const int64_t from = fixed_point(left), step = fixed_point(left_step);
    const T *p = places - first, *s = fan.slope, *v = fan.value;
    const T wide = T(width), wider = T(width_step);
    if (dense <= 1 + 1e-11 && fan.parallel && widest + 4 <= 2 * L)
      add_tile<T, 1, 1, true, true>(out + j, pitch, rows, p, s, v, from, step, wide, wider);
    else if (dense <= 1 + 1e-11 && widest + 4 <= 2 * L)
      add_tile<T, 1, 1, true, false>(out + j, pitch, rows, p, s, v, from, step, wide, wider);
    else if (dense <= 1.25 && widest + 4 <= 2 * L)
      add_tile<T, 1, 1, false, false>(out + j, pitch, rows, p, s, v, from, step, wide, wider);
    else if (dense <= 2.25 && widest + 6 <= 4 * L)
      add_tile<T, 2, 2, false, false>(out + j, pitch, rows, p, s, v, from, step, wide, wider);
    else
      add_tile<T, 2, 3, false, false>(out + j, pitch, rows, p, s, v, from, step, wide, wider);
  }
}

// A strip of rows of a plane, all views.
template <class T>
void spread(const T* sino, const double* rays, const uint8_t* along, bool way, const RadonShape& shape, T* out,
            int64_t pitch, int64_t first, int64_t rows, int64_t columns, Fan<T>& fan) {
  std::memset(out, 0, rows * pitch * sizeof(T));
  const int64_t n = shape.detectors;
  for (int64_t v = 0; v < shape.views; ++v) {
    const double* start = rays + 3 * v * n;
    for_segments(along + v * n, way, n, [&](int64_t a, int64_t b) {
      const double *s = start + a, *slope = s + n, *weight = slope + n;
      const T* y = sino + v * n + a;
      int64_t part = rows;
      for (int64_t r = 0; r < rows; r += part) {
        fan.n = b - a;
        bool ordered;
        for (part = smaller(part, rows - r);; part = (part + 1) / 2) {
          ordered = fan.take(s, slope, weight, y, first + r, part);
          if (!ordered || fan.even(part)) break;
        }
        if (ordered) {
          add_tiles<T>(out + r * pitch, pitch, part, columns, fan);
          continue;
        }
        for (int64_t d = 0; d < b - a; ++d) {
          const double p = s[d] + slope[d] * static_cast<double>(first + r);
          const double w = static_cast<double>(floor_of(p));
          fan.n = 1, fan.whole[0] = T(w), fan.fraction[0] = T(p - w), fan.slope[0] = T(slope[d]);
          fan.value[0] = T(weight[d]) * y[d];
          add_rays<T>(out + r * pitch, pitch, part, columns, fan, 0, 1, 0);
        }
      }
    });
  }
}

// image = down + across^T, rows [begin, end)
template <class T>
void join(const T* down, int64_t down_pitch, const T* across, int64_t across_pitch, T* image, int64_t width,
          int64_t begin, int64_t end) {
  constexpr int64_t L = lanes<T>;
  for (int64_t i = begin; i < end; i += L)
    for (int64_t j = 0; j < width; j += L) {
      Vec<T> turned[L];
      for (int64_t k = 0; k < L; ++k) turned[k] = load<T>(across + (j + k) * across_pitch + i);
      transpose<T>(turned);
      for (int64_t k = 0; k < smaller(L, end - i); ++k) {
        const Vec<T> sum = load<T>(down + (i + k) * down_pitch + j) + turned[k];
        if (j + L <= width)
          store<T>(image + (i + k) * width + j, sum);
        else
          std::memcpy(image + (i + k) * width + j, &sum, (width - j) * sizeof(T));
      }
    }
}

}  // namespace

template <class T>
void radon(const T* image, const double* rays, const uint8_t* along, T* sino, const RadonShape& shape, int threads) {
  const int64_t height = shape.height, width = shape.width, n = shape.detectors;
  const int64_t down_size = Plane<T>::size(height, width), size = down_size + Plane<T>::size(width, height);
  const int slots = shape.batch >= threads ? share_count(threads, shape.batch, 1) : 1;
  const int inner = slots > 1 ? 1 : threads;
  const Scratch<T> memory(slots * size);
  parallel_shares(slots, shape.batch, [&](int slot, int64_t begin, int64_t end) {
    const Plane<T> down(memory.get() + slot * size, height, width);
    const Plane<T> across(memory.get() + slot * size + down_size, width, height);
    for (int64_t b = begin; b < end; ++b) {
      const T* x = image + b * height * width;
      parallel_for(inner, height + width, 64,
                   [&](int64_t r, int64_t last) { lay<T>(x, height, width, down, across, r, last); });
      parallel_for(inner, shape.views, 1, [&](int64_t first, int64_t last) {
        for (int64_t v = first; v < last; ++v) {
          const double* start = rays + 3 * v * n;
          T* out = sino + (b * shape.views + v) * n;
          for (const bool way : ways)
            for_segments(along + v * n, way, n, [&](int64_t from, int64_t to) {
              project<T>(way ? down : across, start + from, start + n + from, start + 2 * n + from, to - from,
                         out + from);
            });
        }
      });
    }
  });
}

template <class T>
void radon_adjoint(const T* sino, const double* rays, const uint8_t* along, T* image, const RadonShape& shape,
                   int threads) {
  const int64_t height = shape.height, width = shape.width;
  const int64_t down_pitch = padded(width), across_pitch = padded(height);
  const int64_t planes = height * down_pitch + (down_pitch + 16) * (across_pitch + 16);  // whole tiles are read
  const int slots = shape.batch >= threads ? share_count(threads, shape.batch, 1) : 1;
  const int inner = slots > 1 ? 1 : threads;
  const int64_t down_strips = (height + tall - 1) / tall, across_strips = (width + tall - 1) / tall;
  const int64_t fan_size = Fan<T>::size(shape.detectors);
  const Scratch<T> memory(slots * planes);
  const Scratch<double> fans(slots * inner * fan_size);
  parallel_shares(slots, shape.batch, [&](int slot, int64_t begin, int64_t end) {
    T* down = memory.get() + slot * planes;
    T* across = down + height * down_pitch;
    for (int64_t b = begin; b < end; ++b) {
      const T* y = sino + b * shape.views * shape.detectors;
      const int64_t strips = down_strips + across_strips;
      const int shares = share_count(inner, strips, 1);
      // Every share takes strips of both planes: a scan of few degrees has rays in one of them only.
      parallel_shares(shares, shares, [&](int share, int64_t, int64_t) {
        Fan<T> fan(fans.get() + (slot * inner + share) * fan_size, shape.detectors);
        for (int64_t i = share; i < strips; i += shares) {
          const bool way = i < down_strips;
          const int64_t rows = way ? height : width, columns = way ? width : height;
          const int64_t pitch = way ? down_pitch : across_pitch, first = (way ? i : i - down_strips) * tall;
          spread<T>(y, rays, along, way, shape, (way ? down : across) + first * pitch, pitch, first,
                    smaller(tall, rows - first), columns, fan);
        }
      });
      parallel_for(inner, height, 16, [&](int64_t r, int64_t last) {
        join<T>(down, down_pitch, across, across_pitch, image + b * height * width, width, r, last);
      });
    }
  });
}

template void radon<float>(const float*, const double*, const uint8_t*, float*, const RadonShape&, int);
template void radon<double>(const double*, const double*, const uint8_t*, double*, const RadonShape&, int);
template void radon_adjoint<float>(const float*, const double*, const uint8_t*, float*, const RadonShape&, int);
template void radon_adjoint<double>(const double*, const double*, const uint8_t*, double*, const RadonShape&, int);

}  // namespace pyrecon::PYRECON_ISA
