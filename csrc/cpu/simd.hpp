// Portable vectors on GCC/Clang vector extensions: the width is the level's, the source is one for all processors.
//
// Kernel sources must not use standard-library templates: the linker merges their instantiations over all levels and
// may keep the AVX-512 one for a processor that has none. Everything here is always_inline in the level's namespace.
#pragma once

#include <cstdint>
#include <cstring>

#define PYRECON_INLINE static inline __attribute__((always_inline))

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
