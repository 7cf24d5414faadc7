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

template <class T>
PYRECON_INLINE Vec<T> splat(T value) {
  return Vec<T>{} + value;
}

template <class T>
PYRECON_INLINE T sum(Vec<T> v) {
  T total = 0;
  for (int64_t i = 0; i < lanes<T>; ++i) total += v[i];
  return total;
}

}  // namespace pyrecon::PYRECON_ISA
