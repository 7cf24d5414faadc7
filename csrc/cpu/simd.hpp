// Portable vectors on GCC/Clang vector extensions: the width is the level's, the source is one for all processors.
//
// Kernel sources must not use standard-library templates: the linker merges their instantiations over all levels and
// may keep the AVX-512 one for a processor that has none. Everything here is always_inline in the level's namespace.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define PYRECON_INLINE static inline __attribute__((always_inline))
#define PYRECON_MEMBER inline __attribute__((always_inline))

namespace pyrecon::PYRECON_ISA {

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(PYRECON_VECTOR_BYTES)));
  typedef int32_t mask __attribute__((vector_size(PYRECON_VECTOR_BYTES)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(PYRECON_VECTOR_BYTES)));
  typedef int64_t mask __attribute__((vector_size(PYRECON_VECTOR_BYTES)));
};
template <class T>
using Vec = typename VecOf<T>::type;

template <class T>
inline constexpr int64_t lanes = PYRECON_VECTOR_BYTES / sizeof(T);

#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int vector_registers = 32;
#else
inline constexpr int vector_registers = 16;
#endif

template <class T>
PYRECON_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);  // one unaligned vector load
  return v;
}

template <class T>
PYRECON_INLINE void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

// value - 0 is one broadcast; 0 + value would keep an addition, because it turns -0 into +0.
template <class T>
PYRECON_INLINE Vec<T> splat(T value) {
  return value - Vec<T>{};
}

// --- 32 x 32 -> 64 bit products ---------------------------------------------------------------------------------
typedef uint64_t Words __attribute__((vector_size(PYRECON_VECTOR_BYTES)));

// The low half of each lane times m, as 64 bits; high halves are not read. One instruction, which GCC 12 does not find
// in the portable line below: it makes three products and two additions of that.
PYRECON_INLINE Words product(Words a, uint32_t m) {
  const Words b = m - Words{};
#if defined(__AVX512F__)
  return (Words)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);  // unmasked, GCC 12 warns of its own header
#elif defined(__AVX2__) && PYRECON_VECTOR_BYTES == 32
  return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__) && PYRECON_VECTOR_BYTES == 16
  return (Words)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffff) * b;
#endif
}

// --- shuffles with constant indices: shuffle(a, b, Indices<...>{}), lanes of b count on from those of a ----------
template <int... I>
struct Indices {};
template <int N, int Start = 0, int Step = 1, int... I>
struct Range : Range<N - 1, Start, Step, Start + (N - 1) * Step, I...> {};
template <int Start, int Step, int... I>
struct Range<0, Start, Step, I...> {
  using type = Indices<I...>;
};

template <class V, int... I>
PYRECON_INLINE auto shuffle(V a, V b, Indices<I...>) {
  return __builtin_shufflevector(a, b, I...);
}

template <class T, int... I>
PYRECON_INLINE Vec<T> repeat_pair(const T* p, Indices<I...>) {
  return Vec<T>{p[I & 1]...};
}

// p[0], p[1], p[0], p[1], ...: one number and its neighbour, e.g. a complex number, in every pair of lanes.
PYRECON_INLINE Vec<double> splat_pair(const double* p) { return repeat_pair(p, typename Range<lanes<double>>::type{}); }
PYRECON_INLINE Vec<float> splat_pair(const float* p) {  // as one 64-bit broadcast; the shuffle goes through the stack
  int64_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return (Vec<float>)(bits - VecOf<double>::mask{});
}

// --- complex numbers and transposes ----------------------------------------------------------------------------------
// Indices that stay within groups of 16 bytes, which is one cheap instruction each; group g of a result takes from
// group g of both arguments. H = 0 is the low half of the pairs or groups, 1 the high half.
template <int E, int H>
struct PickAlternate {  // one stream of interleaved pairs: a0 a2 b0 b2
  static constexpr int at(int i, int n) {
    const int g = i / E * E, k = i % E;
    return k < E / 2 ? g + 2 * k + H : n + g + 2 * (k - E / 2) + H;
  }
};
template <int E, int H>
struct PickPairs {  // pairs from two streams: a0 b0 a1 b1
  static constexpr int at(int i, int n) { return i / E * E + i % E / 2 + H * E / 2 + (i % 2 ? n : 0); }
};
template <int E, int H>
struct PickHalves {  // halves of groups: a0 a1 b0 b1
  static constexpr int at(int i, int n) {
    const int g = i / E * E, k = i % E;
    return g + k % (E / 2) + H * E / 2 + (k < E / 2 ? 0 : n);
  }
};
template <int E, int H>
struct PickGroups {  // every second group of E lanes: of four, 0 2 of a and 0 2 of b, or 1 3 of both
  static constexpr int at(int i, int n) {
    const int g = i / E, k = i % E;
    return (2 * (g % 2) + H) * E + k + (g < 2 ? 0 : n);
  }
};
template <class Pick, class V, int... I>
PYRECON_INLINE V pick(V a, V b, Indices<I...>) {
  return __builtin_shufflevector(a, b, Pick::at(I, sizeof...(I))...);
}
template <class Pick, class V>
PYRECON_INLINE V pick(V a, V b) {
  return pick<Pick>(a, b, typename Range<sizeof(V) / sizeof(a[0])>::type{});
}
template <class T>
inline constexpr int group = 16 / sizeof(T);

// `lanes` complex numbers as (re, im) pairs at p to a vector of each part. The order of the numbers changes to what
// within-group shuffles give: lane i holds number complex_lane<T>(i). Arithmetic does not mind, and put_complex undoes
// it.
template <class T>
PYRECON_INLINE void get_complex(const T* p, Vec<T>& re, Vec<T>& im) {
  const Vec<T> a = load(p), b = load(p + lanes<T>);
  re = pick<PickAlternate<group<T>, 0>>(a, b);
  im = pick<PickAlternate<group<T>, 1>>(a, b);
}
template <class T>
PYRECON_INLINE void put_complex(T* p, Vec<T> re, Vec<T> im) {
  store<T>(p, pick<PickPairs<group<T>, 0>>(re, im));
  store<T>(p + lanes<T>, pick<PickPairs<group<T>, 1>>(re, im));
}
template <class T>
PYRECON_INLINE constexpr int complex_lane(int i) {
  constexpr int e = group<T>, half = e / 2;
  return i / e * half + i % half + (i % e < half ? 0 : static_cast<int>(lanes<T>) / 2);
}

// Every second of the lanes of two vectors, in their order, and back: two or four instructions where whole groups would
// be one.
template <int H>
struct PickEvery {
  static constexpr int at(int i, int) { return 2 * i + H; }
};
template <int H>
struct PickZip {
  static constexpr int at(int i, int n) { return i / 2 + H * n / 2 + (i % 2 ? n : 0); }
};

// v[i][j] <-> v[j][i] for `lanes` vectors.
template <class T>
PYRECON_INLINE void transpose(Vec<T>* v) {
  constexpr int n = lanes<T>, e = group<T>, groups = n / e;
  for (int a = 0; a < n; a += e) {  // within groups: e x e blocks
    if constexpr (e == 2) {
      const Vec<T> t = pick<PickPairs<2, 0>>(v[a], v[a + 1]);
      v[a + 1] = pick<PickPairs<2, 1>>(v[a], v[a + 1]);
      v[a] = t;
    } else {
      const Vec<T> p = pick<PickPairs<4, 0>>(v[a], v[a + 1]), q = pick<PickPairs<4, 0>>(v[a + 2], v[a + 3]);
      const Vec<T> r = pick<PickPairs<4, 1>>(v[a], v[a + 1]), s = pick<PickPairs<4, 1>>(v[a + 2], v[a + 3]);
      v[a] = pick<PickHalves<4, 0>>(p, q);
      v[a + 1] = pick<PickHalves<4, 1>>(p, q);
      v[a + 2] = pick<PickHalves<4, 0>>(r, s);
      v[a + 3] = pick<PickHalves<4, 1>>(r, s);
    }
  }
  for (int i = 0; i < e; ++i) {  // groups as wholes: groups x groups
    if constexpr (groups == 2) {
      const Vec<T> t = pick<PickHalves<n, 0>>(v[i], v[i + e]);
      v[i + e] = pick<PickHalves<n, 1>>(v[i], v[i + e]);
      v[i] = t;
    } else if constexpr (groups == 4) {
      const Vec<T> p = pick<PickHalves<n, 0>>(v[i], v[i + e]), q = pick<PickHalves<n, 0>>(v[i + 2 * e], v[i + 3 * e]);
      const Vec<T> r = pick<PickHalves<n, 1>>(v[i], v[i + e]), s = pick<PickHalves<n, 1>>(v[i + 2 * e], v[i + 3 * e]);
      v[i] = pick<PickGroups<e, 0>>(p, q);
      v[i + e] = pick<PickGroups<e, 1>>(p, q);
      v[i + 2 * e] = pick<PickGroups<e, 0>>(r, s);
      v[i + 3 * e] = pick<PickGroups<e, 1>>(r, s);
    }
  }
}

// The vector folded to its first N lanes: lane i is the sum of lanes i, i + N, i + 2 N, ...
template <int N, class V>
PYRECON_INLINE auto fold(V v) {
  constexpr int n = sizeof(V) / sizeof(v[0]);
  if constexpr (n == N) {
    return v;
  } else {
    return fold<N>(shuffle(v, v, typename Range<n / 2>::type{}) + shuffle(v, v, typename Range<n / 2, n / 2>::type{}));
  }
}

// The sum of all lanes, by halves.
template <class T>
PYRECON_INLINE T sum(Vec<T> v) {
  return fold<1>(v)[0];
}

}  // namespace pyrecon::PYRECON_ISA
