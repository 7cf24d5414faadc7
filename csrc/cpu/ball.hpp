// Distances in rows of numbers, and how a point outside a ball moves to it.
#pragma once

#include <cmath>

#include "cpu/simd.hpp"

namespace pyrecon::PYRECON_ISA {

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
    if (out != v && n > 0) std::memcpy(out, v, n * sizeof(T));
    return;
  }
  const T scale = static_cast<T>(s.scale);
  int64_t i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>)
    store<T>(out + i, load(center + i) + (load(v + i) - load(center + i)) * scale);
  for (; i < n; ++i) out[i] = center[i] + (v[i] - center[i]) * scale;
}

}  // namespace pyrecon::PYRECON_ISA
