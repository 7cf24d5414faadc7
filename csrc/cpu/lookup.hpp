// Numbers looked up in windows of memory: lanes take any of the numbers that a few registers hold, by permutations,
// where gathers would take a load for each lane. And the little arithmetic of places that goes with it.
#pragma once

#include "cpu/simd.hpp"

namespace pyrecon::PYRECON_ISA {

template <class T>
using Ints = typename VecOf<T>::mask;  // as wide as T, one for each lane

#if (defined(__AVX512F__) && PYRECON_VECTOR_BYTES == 64) || (defined(__AVX2__) && PYRECON_VECTOR_BYTES == 32)
template <class T>
inline constexpr bool permutes = PYRECON_VECTOR_BYTES == 64 || sizeof(T) == 4;
#else
template <class T>
inline constexpr bool permutes = false;
#endif

template <class T>
PYRECON_INLINE Ints<T> truncated(Vec<T> v) {
  return __builtin_convertvector(v, Ints<T>);
}

template <class T>
PYRECON_INLINE Vec<T> whole(Ints<T> i) {
  return __builtin_convertvector(i, Vec<T>);
}

template <class T>
PYRECON_INLINE bool any(Ints<T> mask) {
  int64_t words[sizeof(mask) / 8], all = 0;
  std::memcpy(words, &mask, sizeof mask);
  for (const int64_t w : words) all |= w;
  return all != 0;
}

template <class T>
PYRECON_INLINE Vec<T> floored(Vec<T> v) {
#if defined(__AVX512F__) && PYRECON_VECTOR_BYTES == 64
  // Not the plain forms, of which GCC 12 warns in its own header.
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_roundscale_ps(0xffff, (__m512)v, 9);
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_maskz_roundscale_pd(0xff, (__m512d)v, 9);
#elif defined(__AVX2__) && PYRECON_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_floor_ps((__m256)v);
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm256_floor_pd((__m256d)v);
#else
  const Vec<T> t = whole<T>(truncated<T>(v));
  return t > v ? t - T(1) : t;
#endif
}

template <class T>
PYRECON_INLINE Vec<T> magnitude(Vec<T> v) {
  typedef decltype(Ints<T>{}[0] + 0) Int;
  constexpr Int sign = Int(1) << (8 * sizeof(T) - 2);
  return (Vec<T>)((Ints<T>)v & (sign - 1 + sign));
}

// v where it is positive, else 0: one instruction, which GCC 12 does not make of the line for all.
template <class T>
PYRECON_INLINE Vec<T> positive(Vec<T> v) {
#if defined(__AVX512F__) && PYRECON_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_max_ps(0xffff, (__m512)v, __m512{});
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_maskz_max_pd(0xff, (__m512d)v, __m512d{});
#elif defined(__AVX2__) && PYRECON_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_max_ps((__m256)v, __m256{});
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm256_max_pd((__m256d)v, __m256d{});
#else
  return v > 0 ? v : Vec<T>{};
#endif
}

// 0, 1, 2, ...
template <class T, int... I>
PYRECON_INLINE Vec<T> counted(Indices<I...>) {
  return Vec<T>{T(I)...};
}
template <class T>
PYRECON_INLINE Vec<T> counted() {
  return counted<T>(typename Range<lanes<T>>::type{});
}

// A window of 2 * Pairs registers, read once and looked up as often as wanted: lane l of at(i) is p[i[l]], for
// 0 <= i < reach.
template <class T, int Pairs>
struct Window {
  static constexpr int64_t reach = 2 * Pairs * lanes<T>;
  Vec<T> part[2 * Pairs];

  explicit PYRECON_MEMBER Window(const T* p) {
    for (int k = 0; k < 2 * Pairs; ++k) part[k] = load<T>(p + k * lanes<T>);
  }

  PYRECON_MEMBER Vec<T> at(Ints<T> i) const {
    Vec<T> v = pair(0, i);
    if constexpr (Pairs == 2) v = (i & (2 * lanes<T>)) != 0 ? pair(1, i) : v;
    return v;
  }

 private:
  PYRECON_MEMBER Vec<T> pair(int k, Ints<T> i) const {
    const Vec<T> a = part[2 * k], b = part[2 * k + 1];
#if defined(__AVX512F__) && PYRECON_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_permutex2var_ps((__m512)a, (__m512i)i, (__m512)b);
    if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_permutex2var_pd((__m512d)a, (__m512i)i, (__m512d)b);
#elif defined(__AVX2__) && PYRECON_VECTOR_BYTES == 32
    if constexpr (sizeof(T) == 4) {
      const __m256 low = _mm256_permutevar8x32_ps((__m256)a, (__m256i)i);
      const __m256 high = _mm256_permutevar8x32_ps((__m256)b, (__m256i)i);
      return (Vec<T>)_mm256_blendv_ps(low, high, (__m256)(i << 28));  // bit 3 to the sign
    }
#endif
    Vec<T> v;
    for (int l = 0; l < lanes<T>; ++l) {
      const int64_t at = i[l] & (2 * lanes<T> - 1);
      v[l] = at < lanes<T> ? a[at] : b[at - lanes<T>];
    }
    return v;
  }
};

}  // namespace pyrecon::PYRECON_ISA
