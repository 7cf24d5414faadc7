// 3x3 convolutions by Winograd's F(2x2, 3x3): 16 products for four pixels, where the taps of a filter take 36.
//
// A filter g and a 4x4 patch d of its input give a tile of 2x2 pixels, A^T [(G g G^T) * (B^T d B)] A: sums over inputs
// run between the transforms, which only add (and halve). Each of the 16 numbers is a plane of its own, a point, whose
// lanes are tiles: at a time the inputs of one point are in the first-level cache (18 KB for 48 of 26 x 13) for all
// outputs. Patches of an input are made once for all convolutions that read it.
//
// Rounding does not grow: 0.6 to 1.3 eps of the scale through the whole network, 0.6 to 1.5 with nine taps.
// Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR 2016.
#pragma once

#include "cpu/conv.hpp"

namespace pyrecon::PYRECON_ISA {

template <class T>
struct Winograd {
  static constexpr int points = 16;
  static constexpr int64_t slack = 2 * lanes<T>;  // read after the last plane of pixels, and zeros after the mask

  int64_t rows, pitch;        // of a plane of pixels (cpu/conv.hpp); one zero after each row
  bool transposed;            // the image in it
  int64_t channels, outputs;  // at most
  int64_t tiles = pitch / 2;  // in a row
  int64_t beyond = tiles < lanes<T> ? lanes<T> - tiles : 0;  // how far a row's only vector reaches
  int64_t total = (rows + 1) / 2 * tiles;
  int64_t vectors = (total + beyond + lanes<T> - 1) / lanes<T>;
  int64_t stride = vectors * lanes<T>;
  int64_t point = channels * stride + Planes<T>::line;  // not a multiple of 4096 bytes: points spread over the sets
  int64_t sum = outputs * stride + Planes<T>::line;

  // Whether it saves time: transforms, and tiles beside the image, must not cost more than the fewer products save. A
  // vector wider than two rows would reach beyond margins.
  bool pays(const Planes<T>& planes) const { return pitch >= lanes<T> && 22 * vectors < 9 * planes.vectors; }
  static bool fits(const Conv<T>& c) { return c.taps == 9 && c.inputs >= 4 && c.outputs >= 4; }

  int64_t memory() const { return points * (point + sum); }

  // G g G^T of all filters, (point, output, input): it takes 16/9 of the place of `c.weight`.
  void filters(const Conv<T>& c, T* to) const {
    const int64_t size = c.outputs * c.inputs;
    const int64_t down = transposed ? 1 : 3, right = transposed ? 3 : 1;
    for (int64_t begin = 0; begin < size; begin += lanes<T>) {
      const int64_t count = size - begin < lanes<T> ? size - begin : lanes<T>;
      T taps[9][lanes<T>] = {};
      for (int64_t i = 0; i < count; ++i)
        for (int64_t t = 0; t < 9; ++t) taps[t][i] = c.weight[(begin + i) * 9 + t];
      Vec<T> half[4][3];
      for (int64_t x = 0; x < 3; ++x) {
        const T* g = taps[x * right];
        spread_taps(load(g), load(g + down * lanes<T>), load(g + 2 * down * lanes<T>), half[0][x], half[1][x],
                    half[2][x], half[3][x]);
      }
      for (int64_t y = 0; y < 4; ++y) {
        Vec<T> whole[4];
        spread_taps(half[y][0], half[y][1], half[y][2], whole[0], whole[1], whole[2], whole[3]);
        for (int64_t x = 0; x < 4; ++x) {
          T* at = to + (y * 4 + x) * size + begin;
          if (count == lanes<T>) {
            store<T>(at, whole[x]);
          } else {  // a call of memcpy: for all vectors it would take a sixth of the time of a network
            std::memcpy(at, &whole[x], count * sizeof(T));
          }
        }
      }
    }
  }

  // B^T d B of all patches of `count` planes, as channels from `channel` on.
  void patches(const T* first, int64_t plane, int64_t count, int64_t channel, T* memory, int threads) const {
    parallel_for(threads, count, 4096 / (4 * stride) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        T* to = memory + (channel + p) * stride;
        for (int64_t r = 0; r < rows; r += 2)
          for (int64_t t = 0; t < tiles; t += lanes<T>) patch(first + p * plane, r, aligned(t), to);
        for (int64_t i = 0; i < points; ++i)
          for (int64_t t = total; t < stride; ++t) to[i * point + t] = 0;
      }
    });
  }

  // The convolution, with `filter` as filters() makes it and its inputs as patches.
  void convolve(const Conv<T>& c, const T* filter, T* memory, int64_t plane, int threads) const {
    T* sums = memory + points * point;
    parallel_for(threads, c.outputs, 4096 / (c.inputs * points * vectors) + 1, [&](int64_t begin, int64_t end) {
      const int64_t groups = (end - begin + most_outputs - 1) / most_outputs;
      for (int64_t i = 0; i < points; ++i) {
        for (int64_t v = 0; v < vectors; v += 2) {
          for (int64_t g = 0; g < groups; ++g) {
            const int64_t output = begin + (end - begin) * g / groups;
            const int64_t count = begin + (end - begin) * (g + 1) / groups - output;
            const T *d = memory + i * point + v * lanes<T>, *w = filter + (i * c.outputs + output) * c.inputs;
            T* to = sums + i * sum + output * stride + v * lanes<T>;
            with_count<most_outputs>(count, [&](auto o) {
              with_count<2>(vectors - v,
                            [&](auto n) { products<decltype(o)::value, decltype(n)::value>(d, w, c.inputs, to); });
            });
          }
        }
      }
      for (int64_t o = begin; o < end; ++o)
        for (int64_t r = 0; r < rows; r += 2)
          for (int64_t t = 0; t < tiles; t += lanes<T>) pixels(c, plane, o, r, aligned(t), sums + o * stride);
    });
  }

 private:
  // The last vector of a row ends with it. One that is wider reaches into what is written next, or is not read.
  int64_t aligned(int64_t tile) const { return beyond == 0 && tile > tiles - lanes<T> ? tiles - lanes<T> : tile; }

  PYRECON_INLINE void spread_taps(Vec<T> a, Vec<T> b, Vec<T> c, Vec<T>& p, Vec<T>& q, Vec<T>& r, Vec<T>& s) {
    const Vec<T> half = splat(T(0.5)), sum = (a + c) * half, middle = b * half;
    p = a, q = sum + middle, r = sum - middle, s = c;
  }

  // The tiles of row r from `tile`.
  PYRECON_MEMBER void patch(const T* plane, int64_t r, int64_t tile, T* to) const {
    const T* at = plane + (r - 1) * pitch + 2 * tile;
    to += r / 2 * tiles + tile;
    Vec<T> across[4][4];
    for (int64_t y = 0; y < 4; ++y) {
      const T* line = at + (y == 3 && r + 2 > rows ? 2 : y) * pitch;  // below the zeros under the image: not used
      const Vec<T> left = load(line - 1), right = load(line - 1 + lanes<T>);
      const Vec<T> next = load(line + 1), after = load(line + 1 + lanes<T>);
      const Vec<T> a = pick<PickEvery<0>>(left, right), b = pick<PickEvery<1>>(left, right);
      const Vec<T> c = pick<PickEvery<0>>(next, after), d = pick<PickEvery<1>>(next, after);
      across[y][0] = a - c, across[y][1] = b + c, across[y][2] = c - b, across[y][3] = b - d;
    }
    for (int64_t x = 0; x < 4; ++x) {
      store<T>(to + x * point, across[0][x] - across[2][x]);
      store<T>(to + (4 + x) * point, across[1][x] + across[2][x]);
      store<T>(to + (8 + x) * point, across[2][x] - across[1][x]);
      store<T>(to + (12 + x) * point, across[1][x] - across[3][x]);
    }
  }

  // Sums over inputs for O outputs and V vectors of tiles.
  template <int O, int V>
  PYRECON_MEMBER void products(const T* d, const T* filter, int64_t inputs, T* to) const {
    Vec<T> total[O][V] = {};
#pragma GCC unroll 1  // as in conv_tile()
    for (int64_t i = 0; i < inputs; ++i, ++filter, d += stride) {
      Vec<T> value[V];
      for (int v = 0; v < V; ++v) value[v] = load(d + v * lanes<T>);
      for (int o = 0; o < O; ++o) {
        const Vec<T> w = splat(filter[o * inputs]);
        for (int v = 0; v < V; ++v) total[o][v] += w * value[v];
      }
    }
    for (int o = 0; o < O; ++o)
      for (int v = 0; v < V; ++v) store<T>(to + o * stride + v * lanes<T>, total[o][v]);
  }

  // Two rows of pixels of an output, from its sums at all points.
  PYRECON_MEMBER void pixels(const Conv<T>& c, int64_t plane, int64_t output, int64_t r, int64_t tile,
                             const T* sums) const {
    sums += r / 2 * tiles + tile;
    Vec<T> upper[4], lower[4];
    for (int64_t x = 0; x < 4; ++x) {
      const Vec<T> middle = load(sums + (4 + x) * sum), other = load(sums + (8 + x) * sum);
      upper[x] = load(sums + x * sum) + middle + other;
      lower[x] = middle - other - load(sums + (12 + x) * sum);
    }
    const Vec<T> bias = c.bias ? splat(c.bias[output]) : Vec<T>{};
    const int64_t at = r * pitch + 2 * tile;
    const auto row = [&](const Vec<T>* m, int64_t at) {
      const Vec<T> even = bias + (m[0] + m[1] + m[2]), odd = bias + (m[1] - m[2] - m[3]);
      finish(c, plane, output, at, pick<PickZip<0>>(even, odd));
      finish(c, plane, output, at + lanes<T>, pick<PickZip<1>>(even, odd));
    };
    row(upper, at);
    if (r + 1 < rows) row(lower, at + pitch);
  }
};

}  // namespace pyrecon::PYRECON_ISA
