#include "cpu/fbp.hpp"

#include <math.h>

#include "cpu/lookup.hpp"
#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"

// Lanes are neighbouring pixels of a row: a view sees them beside each other, so that one window of it holds what they
// need. The first pixel's place is computed in double, the others' from there: as a difference, which float holds.

namespace pyrecon::PYRECON_ISA {
namespace {

constexpr int64_t margin = 96;  // zeros beside a view: a window starts at most 65 before it
constexpr int64_t block = 8;    // rows that share a view while it is in the first-level cache
constexpr double slack = 1e-4;  // of a detector pixel, beyond all rounding
constexpr double small = 0.2;   // radians up to which the series of atan below is exact in float

PYRECON_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
PYRECON_INLINE int64_t floor_of(double v) {
  const int64_t i = static_cast<int64_t>(v);
  return i - (static_cast<double>(i) > v);
}

// Where a view sees pixel (i, j), and with what weight; nothing behind the source.
PYRECON_INLINE bool seen(const double* c, bool curved, double i, double j, double& place, double& weight) {
  const double n = c[0] + c[1] * j + c[2] * i, u = c[3] + c[4] * j + c[5] * i;
  if (curved) {
    place = c[6] + c[7] * atan2(n, u), weight = 1 / (n * n + u * u);
    return true;
  }
  place = c[6] + c[7] * n / u, weight = 1 / (u * u);
  return u > 0;
}

template <class T, int Pairs>
PYRECON_INLINE Vec<T> interpolated(const T* q, Vec<T> at) {
  const Vec<T> before = floored<T>(at);
  const Ints<T> i = truncated<T>(before);
  const Window<T, Pairs> window(q);
  const Vec<T> a = window.at(i), b = window.at(i + 1);
  return a + (at - before) * (b - a);
}

// Pixels [j, j + count) of row i, one at a time.
template <class T>
void add_pixels(const T* view, int64_t detectors, const double* c, bool curved, int64_t i, int64_t j, int64_t count,
                T* out) {
  for (int64_t l = 0; l < count; ++l) {
    double place, weight;
    if (!seen(c, curved, static_cast<double>(i), static_cast<double>(j + l), place, weight)) continue;
    if (!(place > -1 && place < static_cast<double>(detectors))) continue;
    const int64_t before = floor_of(place);
    const T f = T(place - static_cast<double>(before)), a = view[before], b = view[before + 1];
    out[l] += T(weight) * (a + f * (b - a));
  }
}

// One view, one row of pixels. Kind 0: parallel rays, 1: flat detector, 2: curved one. `view` has its margins.
template <class T, int Kind>
void add_row(const T* view, int64_t detectors, const double* c, int64_t i, int64_t width, T* out) {
  constexpr int64_t L = lanes<T>;
  const Vec<T> lane = counted<T>();
  for (int64_t j = 0; j < width; j += L) {
    const double row = static_cast<double>(i), column = static_cast<double>(j);
    const double n0 = c[0] + c[1] * column + c[2] * row, u0 = c[3] + c[4] * column + c[5] * row;
    const double u1 = u0 + c[4] * (L - 1), n1 = n0 + c[1] * (L - 1), turn = c[1] * u0 - n0 * c[4];
    double first, last;  // places of the first and the last lane
    Vec<T> away, weight = {};
    bool plain = !permutes<T>;  // one pixel at a time
    if constexpr (Kind == 0) {
      const double step = c[7] * c[1];
      first = c[6] + c[7] * n0, last = first + step * (L - 1);
      away = lane * T(step);
    } else if constexpr (Kind == 1) {
      const double inverse = c[7] / u0;
      first = c[6] + inverse * n0, last = first + inverse * turn * (L - 1) / u1;
      plain |= !(u0 > 0 && u1 > 0);
      const Vec<T> closer = T(1) / (T(u0) + lane * T(c[4]));
      away = lane * T(inverse * turn) * closer, weight = closer * closer;
    } else {
      const double angle = turn * (L - 1) / (u0 * u1 + n0 * n1);
      first = c[6] + c[7] * atan2(n0, u0), last = first + c[7] * atan(angle);
      const Vec<T> n = T(n0) + lane * T(c[1]), u = T(u0) + lane * T(c[4]);
      const Vec<T> t = lane * T(turn) / (T(u0) * u + T(n0) * n), tt = t * t;
      const Vec<T> series = T(1) - tt * (T(1.0 / 3) - tt * (T(1.0 / 5) - tt * (T(1.0 / 7) - tt * T(1.0 / 9))));
      away = T(c[7]) * t * series, weight = T(1) / (n * n + u * u);
      plain |= sizeof(T) == 8 || !(u0 > 0 && u1 > 0 && angle < small && angle > -small);
    }
    const double low = first < last ? first : last, high = first < last ? last : first;
    const double span = high - low + 2 + 10 * slack;
    if (plain || !(span <= 4 * L)) {
      add_pixels<T>(view, detectors, c, Kind == 2, i, j, smaller(L, width - j), out + j);
      continue;
    }
    if (high <= -1 || low >= static_cast<double>(detectors)) continue;
    const int64_t base = floor_of(low - slack);
    const Vec<T> at = T(first - static_cast<double>(base)) + away;
    Vec<T> value = span <= 2 * L ? interpolated<T, 1>(view + base, at) : interpolated<T, 2>(view + base, at);
    if constexpr (Kind != 0) value *= weight;
    store<T>(out + j, load<T>(out + j) + value);
  }
}

int kind_of(const double* cameras, int64_t views, bool curved) {
  if (curved) return 2;
  for (int64_t v = 0; v < views; ++v)
    if (cameras[8 * v + 3] != 1 || cameras[8 * v + 4] != 0 || cameras[8 * v + 5] != 0) return 1;
  return 0;
}

}  // namespace

template <class T>
void fbp(const T* sino, const double* cameras, bool curved, T* image, const FbpShape& shape, int threads) {
  const int64_t n = shape.detectors, pitch = n + 2 * margin, width = shape.width, padded = (width + 15) / 16 * 16;
  const int kind = kind_of(cameras, shape.views, curved);
  const Scratch<T> framed(shape.views * pitch);
  const int shares = share_count(threads, (shape.height + block - 1) / block, 1);
  const Scratch<T> rows(shares * block * padded);
  for (int64_t b = 0; b < shape.batch; ++b) {
    parallel_for(threads, shape.views, 16, [&](int64_t v, int64_t last) {
      for (; v < last; ++v) {
        T* to = framed.get() + v * pitch;
        std::memset(to, 0, pitch * sizeof(T));
        std::memcpy(to + margin, sino + (b * shape.views + v) * n, n * sizeof(T));
      }
    });
    parallel_shares(shares, (shape.height + block - 1) / block, [&](int share, int64_t begin, int64_t end) {
      T* out = rows.get() + share * block * padded;
      for (int64_t first = begin * block; first < smaller(end * block, shape.height); first += block) {
        const int64_t count = smaller(block, shape.height - first);
        std::memset(out, 0, block * padded * sizeof(T));
        for (int64_t v = 0; v < shape.views; ++v) {
          const T* view = framed.get() + v * pitch + margin;
          for (int64_t r = 0; r < count; ++r) {
            const auto add = kind == 0 ? add_row<T, 0> : kind == 1 ? add_row<T, 1> : add_row<T, 2>;
            add(view, n, cameras + 8 * v, first + r, width, out + r * padded);
          }
        }
        for (int64_t r = 0; r < count; ++r)
          std::memcpy(image + (b * shape.height + first + r) * width, out + r * padded, width * sizeof(T));
      }
    });
  }
}

template <class T>
void fbp_backward(const T* image, const double* cameras, bool curved, T* sino, const FbpShape& shape, int threads) {
  const int64_t n = shape.detectors;
  parallel_for(threads, shape.batch * shape.views, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const double* c = cameras + 8 * (item % shape.views);
      const T* x = image + item / shape.views * shape.height * shape.width;
      T* out = sino + item * n;
      std::memset(out, 0, n * sizeof(T));
      for (int64_t i = 0; i < shape.height; ++i)
        for (int64_t j = 0; j < shape.width; ++j) {
          double place, weight;
          if (!seen(c, curved, static_cast<double>(i), static_cast<double>(j), place, weight)) continue;
          if (!(place > -1 && place < static_cast<double>(n))) continue;
          const int64_t before = floor_of(place);
          const T f = T(place - static_cast<double>(before)), value = T(weight) * x[i * shape.width + j];
          if (before >= 0) out[before] += (1 - f) * value;
          if (before + 1 < n) out[before + 1] += f * value;
        }
    }
  });
}

template void fbp<float>(const float*, const double*, bool, float*, const FbpShape&, int);
template void fbp<double>(const double*, const double*, bool, double*, const FbpShape&, int);
template void fbp_backward<float>(const float*, const double*, bool, float*, const FbpShape&, int);
template void fbp_backward<double>(const double*, const double*, bool, double*, const FbpShape&, int);

}  // namespace pyrecon::PYRECON_ISA
