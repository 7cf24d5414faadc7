// Products with the rows of a dense matrix, for several vectors: lanes run along a row.
//
// Vectors of the matrix's width are kept `padded`: the last of their vectors ends where a row ends, so that it can be
// loaded with the row's, and has zeros for the numbers that the one before it has as well.
#pragma once

#include "cpu/conv.hpp"

namespace pyrecon::PYRECON_ISA {

template <class T>
struct RowProducts {
  static constexpr int most = 4;  // vectors for which a row is loaded once

  int64_t n, pitch;  // numbers in a row, and from row to row: at least a vector
  int64_t vectors = (n + lanes<T> - 1) / lanes<T>;
  int64_t padded = vectors * lanes<T>;
  int64_t whole = padded - lanes<T>;                 // numbers before the last vector
  int64_t end = n < lanes<T> ? 0 : n - lanes<T>;     // where in a row the last vector starts
  int64_t repeated = n < lanes<T> ? 0 : padded - n;  // of its numbers, those that the one before it has

  static int64_t pitch_of(int64_t n) { return n < lanes<T> ? lanes<T> : n; }

  void pad(const T* x, T* to) const {
    std::memcpy(to, x, whole * sizeof(T));
    std::memset(to + whole, 0, lanes<T> * sizeof(T));
    std::memcpy(to + whole + repeated, x + whole, (n - whole) * sizeof(T));
  }
  // Number i of a row in a padded vector.
  int64_t at(int64_t i) const { return i < whole ? i : i + repeated; }

  // out[s][r] = <row r, x[s]> for `count` rows and S = `samples` padded vectors.
  void multiply(const T* rows, int64_t count, const T* const* x, int samples, T* const* out) const {
    for (; samples > 0; samples -= most, x += most, out += most) {
      with_count<most>(samples, [&](auto s) {
        constexpr int S = decltype(s)::value, R = S == 1 ? 6 : S == 2 ? 4 : S == 3 ? 3 : 2;
        int64_t r = 0;
        for (; r + R <= count; r += R) dot_tile<R, S>(rows + r * pitch, x, out, r);
        for (; r < count; ++r) dot_tile<1, S>(rows + r * pitch, x, out, r);
      });
    }
  }

  // out[c] (padded) = [out[c] +] sum_r factors[r][c] row r, for `count` rows and 2 `samples` vectors.
  void combine(const T* rows, int64_t count, const T* factors, int samples, T* const* out, bool add) const {
    const int64_t stride = 2 * samples;
    for (; samples > 0; samples -= most, factors += 2 * most, out += 2 * most) {
      with_count<most>(samples, [&](auto s) {
        constexpr int C = 2 * decltype(s)::value, V = conv_tile_size / C;
        int64_t v = 0;
        for (; v + V <= vectors; v += V) sum_tile<C, V>(rows, count, factors, stride, v, out, add);
        for (; v < vectors; ++v) sum_tile<C, 1>(rows, count, factors, stride, v, out, add);
      });
    }
  }

 private:
  int64_t offset(int64_t v) const { return v < vectors - 1 ? v * lanes<T> : end; }

  template <int R, int S>
  PYRECON_MEMBER void dot_tile(const T* rows, const T* const* x, T* const* out, int64_t at) const {
    Vec<T> total[R][S] = {};
    const auto add = [&](int64_t from, int64_t v) {
      Vec<T> value[S];
      for (int s = 0; s < S; ++s) value[s] = load(x[s] + v);
      for (int r = 0; r < R; ++r) {
        const Vec<T> a = load(rows + r * pitch + from);
        for (int s = 0; s < S; ++s) total[r][s] += a * value[s];
      }
    };
    for (int64_t v = 0; v < whole; v += lanes<T>) add(v, v);
    add(end, whole);
    for (int r = 0; r < R; ++r)
      for (int s = 0; s < S; ++s) out[s][at + r] = sum<T>(total[r][s]);
  }

  template <int C, int V>
  PYRECON_MEMBER void sum_tile(const T* rows, int64_t count, const T* factors, int64_t stride, int64_t v, T* const* out,
                               bool add) const {
    Vec<T> total[C][V] = {};
    int64_t from[V];
    for (int i = 0; i < V; ++i) from[i] = offset(v + i);
    for (int64_t r = 0; r < count; ++r, rows += pitch, factors += stride) {
      Vec<T> value[V];
      for (int i = 0; i < V; ++i) value[i] = load(rows + from[i]);
      for (int c = 0; c < C; ++c) {
        const Vec<T> f = splat(factors[c]);
        for (int i = 0; i < V; ++i) total[c][i] += f * value[i];
      }
    }
    for (int c = 0; c < C; ++c)
      for (int i = 0; i < V; ++i) {
        T* to = out[c] + (v + i) * lanes<T>;
        store<T>(to, add ? load(to) + total[c][i] : total[c][i]);
      }
  }
};

}  // namespace pyrecon::PYRECON_ISA
