// What fits of voxels share: lanes are voxels, of which a block is taken at a time, and the signals of a table.
#pragma once

#include "cpu/fit.hpp"
#include "cpu/lookup.hpp"

namespace pyrecon::PYRECON_ISA {

inline constexpr int rows = 5;  // of the table: time, p + q, q, 1 - u, u
inline constexpr int converged = 0, limit_reached = 1, nonfinite = 3;

// 1 - exp(-x) and exp(-x) for x >= 0: exp(-x) = 2^k (1 + g), g = expm1(f) by its series, |f| <= ln(2) / 2. Adding a
// number whose last bit is worth one rounds, and leaves k in the low bits, from where it moves to the exponent.
template <class T>
PYRECON_INLINE Vec<T> one_minus_exp(Vec<T> x, Vec<T>& exponential) {
  constexpr bool single = sizeof(T) == 4;
  constexpr int mantissa = single ? 23 : 52;
  typedef decltype(Ints<T>{}[0] + 0) Int;
  constexpr Int bias = Int(single ? 127 : 1023) << mantissa;
  constexpr T magic = T(3) * T(Int(1) << (mantissa - 1));
  const T most = single ? T(80) : T(700);
  const Vec<T> y = x > most ? splat<T>(-most) : -x;  // NaN stays
  const Vec<T> k = y * T(1.4426950408889634) + magic, n = k - magic;
  const Vec<T> f = single ? (y - n * T(0.693359375)) + n * T(2.12194440e-4)
                          : (y - n * T(0.693147180369123816490)) - n * T(1.90821492927058770002e-10);
  constexpr int terms = single ? 7 : 14;
  T over = 1;
  for (int i = 2; i <= terms; ++i) over /= T(i);
  Vec<T> g = splat(over);
  for (int i = terms; i > 1; --i) {
    over *= T(i);
    g = g * f + over;
  }
  g *= f;
  const Vec<T> two = (Vec<T>)(((Ints<T>)k << mantissa) + bias);
  const Vec<T> scaled = two * g;
  exponential = two + scaled;
  return (T(1) - two) - scaled;
}

template <class T>
PYRECON_INLINE Vec<T> load_part(const T* p, int64_t count) {
  if (count >= lanes<T>) return load(p);
  T part[lanes<T>] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = p[i];
  return load(part);
}

template <class T>
PYRECON_INLINE void store_part(T* p, Vec<T> v, int64_t count) {
  if (count >= lanes<T>) return store<T>(p, v);
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

// Whole numbers of another type: lane by lane they took a tenth of a fit.
template <class T, class Whole>
PYRECON_INLINE void store_whole(Whole* p, Vec<T> v, int64_t count) {
  typedef Whole Part __attribute__((vector_size(sizeof(Whole) * lanes<T>)));
  const Part part = __builtin_convertvector(v, Part);
  if (count >= lanes<T>)
    __builtin_memcpy(p, &part, sizeof part);
  else
    for (int64_t i = 0; i < count; ++i) p[i] = part[i];
}

template <class T>
PYRECON_INLINE void load_complex(const T* p, int64_t count, Vec<T>& re, Vec<T>& im) {
  const Vec<T> a = load_part(p, 2 * count), b = load_part(p + lanes<T>, 2 * count - lanes<T>);
  re = pick<PickEvery<0>>(a, b), im = pick<PickEvery<1>>(a, b);
}

template <class T>
PYRECON_INLINE void store_complex(T* p, Vec<T> re, Vec<T> im, int64_t count) {
  store_part<T>(p, pick<PickZip<0>>(re, im), 2 * count);
  store_part<T>(p + lanes<T>, pick<PickZip<1>>(re, im), 2 * count - lanes<T>);
}

// The table of a block: rows x images. Memory of the caller.
template <class T>
struct Curves {
  typedef Vec<T> V;
  int64_t images;
  bool plain = false;   // u = 0: no division
  bool decays = false;  // p = 0 as well
  V* table;

  PYRECON_MEMBER V time(int64_t t) const { return table[t]; }
  PYRECON_MEMBER V row(int r, int64_t t) const { return table[r * images + t]; }

  // Of a sample whose voxels share it.
  PYRECON_MEMBER void share(const T* curves) {
    plain = decays = true;
    for (int64_t t = 0; t < images; ++t) {
      plain &= curves[4 * images + t] == 0 && curves[3 * images + t] == 1;
      decays &= curves[images + t] == curves[2 * images + t];
    }
    for (int64_t i = 0; i < rows * images; ++i) table[i] = splat(curves[i]);
  }

  // Of voxels [v, v + count) of `voxels`.
  PYRECON_MEMBER void take(const T* curves, int64_t voxels, int64_t v, int64_t count) {
    for (int64_t i = 0; i < rows * images; ++i) table[i] = load_part(curves + i * voxels + v, count);
  }

  // p + q E of image t: neither form hides the smaller of two numbers. One is enough where u = 0 for all voxels: phi
  // then ends at p, which is 0 or is not small beside q.
  PYRECON_MEMBER V above(int64_t t, V m, V e) const {
    const V q = row(2, t);
    if (plain) return decays ? q * e : row(1, t) - q * m;
    return e < T(0.5) ? (row(1, t) - q) + q * e : row(1, t) - q * m;
  }

  // phi and its derivatives in R of image t.
  PYRECON_MEMBER void shapes(V rate, int64_t t, V& value, V& d1, V& d2) const {
    V e;
    const V at = time(t), m = one_minus_exp<T>(at * rate, e), q = row(2, t), change_e = -at * e;
    if (plain) {
      value = above(t, m, e), d1 = q * change_e, d2 = -at * d1;
      return;
    }
    const V u = row(4, t), rest = row(3, t), inverse = T(1) / (rest + u * m);
    const V change = (q * rest + u * row(1, t)) * inverse * inverse;
    value = above(t, m, e) * inverse, d1 = change * change_e;
    d2 = change_e * (T(2) * u * change * inverse * change_e - change * at);
  }
};

// body(sample, first voxel, count, whether the table is another one than before) for blocks [begin, end) of all.
template <class T, class Body>
PYRECON_INLINE void each_block(const FitShape& shape, int64_t begin, int64_t end, const Body& body) {
  constexpr int64_t L = lanes<T>;
  const int64_t size = shape.voxels, blocks = (size + L - 1) / L;
  int64_t sample = -1;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / blocks, v = i % blocks * L;
    body(b, v, size - v < L ? size - v : L, b != sample && (sample < 0 || shape.per_sample));
    sample = b;
  }
}

}  // namespace pyrecon::PYRECON_ISA
