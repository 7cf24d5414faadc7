// Convolutions of few channels whose feature maps stay in cache: lanes are places, weights are broadcast.
//
// A feature map is a plane with margins of zeros: a tap of a filter reads the vector so many places on. Results are
// masked, so that zeros within and after a plane stay. Weights are read as torch stores them, (output, input, tap): the
// weights of a few outputs are as many streams. Nothing is concatenated: a convolution reads the planes of two ranges.
#pragma once

#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"

namespace pyrecon::PYRECON_ISA {

PYRECON_INLINE constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Calls f(Int<N>) for the N = count <= MAX known at compile time.
template <int N>
struct Int {
  static constexpr int value = N;
};
template <int MAX, class Function>
PYRECON_INLINE void with_count(int64_t count, const Function& f) {
  if constexpr (MAX > 1) {
    if (count < MAX) return with_count<MAX - 1>(count, f);
  }
  f(Int<MAX>{});
}

// Planes of `count` numbers, no tap of which is further away than `reach`; the margins between planes are shared.
template <class T>
struct Planes {
  static constexpr int64_t line = 64 / sizeof(T);

  int64_t count, reach;
  int64_t vectors = (count + lanes<T> - 1) / lanes<T>;
  int64_t body = round_up(count, line);
  // An odd number of cache lines from plane to plane: they spread over the cache's sets.
  int64_t margin = round_up(reach, line) + ((body + round_up(reach, line)) / line % 2 != 0 ? 0 : line);
  int64_t stride = body + margin;

  int64_t memory(int64_t planes) const { return margin + planes * stride; }

  // Zeros around the planes, the first of which is at `first`; of it, zeros within as well.
  void clear(T* first, int64_t planes) const {
    std::memset(first - margin, 0, (margin + stride) * sizeof(T));
    for (int64_t p = 1; p < planes; ++p) std::memset(first + p * stride + count, 0, (stride - count) * sizeof(T));
  }

  // All bits of a number where keep(i), no bits elsewhere.
  template <class Keep>
  void make_mask(T* mask, const Keep& keep) const {
    for (int64_t i = 0; i < body; ++i) std::memset(mask + i, i < count && keep(i) ? 0xff : 0, sizeof(T));
  }
};

// out = [relu](skip + bias + weight * in); the inputs are `split` planes from `first` on, then those of `rest`. Where
// there is a gate, zero where it is not positive: ReLU's gradient, with its results for the gate.
template <class T>
struct Conv {
  const T *first, *rest;
  int64_t split, inputs, outputs, taps;
  const int64_t* offsets;  // of the taps
  const T *weight, *bias, *skip, *mask;
  T* out;
  bool relu;
  const T* gate = nullptr;

  const T* input(int64_t i, int64_t stride) const {
    return i < split ? first + i * stride : rest + (i - split) * stride;
  }
};

constexpr int conv_tile_size = vector_registers == 32 ? 24 : 12;  // accumulators: outputs times vectors
constexpr int most_outputs = conv_tile_size / 2;

// What follows the sum of products, for a vector of an output.
template <class T>
PYRECON_INLINE void finish(const Conv<T>& c, int64_t stride, int64_t output, int64_t at, Vec<T> value) {
  const int64_t i = output * stride + at;
  if (c.skip) value += load(c.skip + i);
  if (c.relu) value = value < Vec<T>{} ? Vec<T>{} : value;  // keeps a NaN
  if (c.gate) value = load(c.gate + i) <= Vec<T>{} ? Vec<T>{} : value;
  using Bits = typename VecOf<T>::mask;
  store<T>(c.out + i, (Vec<T>)((Bits)value & (Bits)load(c.mask + at)));
}

// O outputs from `output` for V vectors from `at`.
template <int O, int V, class T>
PYRECON_INLINE void conv_tile(const Conv<T>& c, int64_t stride, int64_t output, int64_t at) {
  const int64_t filter = c.inputs * c.taps, *offsets = c.offsets;
  const T* w = c.weight + output * filter;
  Vec<T> total[O][V];
  for (int o = 0; o < O; ++o)
    for (int v = 0; v < V; ++v) total[o][v] = c.bias ? splat(c.bias[output + o]) : Vec<T>{};
  for (int64_t i = 0; i < c.inputs; ++i) {
    const T* x = c.input(i, stride) + at;
#pragma GCC unroll 1  // unrolled, it reads ahead into registers that it does not have: 18 % slower on AVX2
    for (int64_t t = 0; t < c.taps; ++t, ++w) {
      const T* from = x + offsets[t];
      Vec<T> value[V];
      for (int v = 0; v < V; ++v) value[v] = load(from + v * lanes<T>);
      for (int o = 0; o < O; ++o) {
        const Vec<T> wo = splat(w[o * filter]);
        for (int v = 0; v < V; ++v) total[o][v] += wo * value[v];
      }
    }
  }
  for (int o = 0; o < O; ++o)
    for (int v = 0; v < V; ++v) finish(c, stride, output + o, at + v * lanes<T>, total[o][v]);
}

// All outputs, for the vectors [begin, end) of places, in strips that stay in cache for all groups of outputs.
template <class T>
void conv_part(const Conv<T>& c, int64_t stride, int64_t begin, int64_t end) {
  constexpr int64_t strip = 120;
  const int64_t groups = (c.outputs + most_outputs - 1) / most_outputs;
  for (; begin < end; begin += strip) {
    const int64_t stop = begin + strip < end ? begin + strip : end;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t output = c.outputs * g / groups, count = c.outputs * (g + 1) / groups - output;
      with_count<most_outputs>(count, [&](auto n) {
        constexpr int O = decltype(n)::value, V = conv_tile_size / O < 6 ? conv_tile_size / O : 6;
        int64_t v = begin;
        for (; v + V <= stop; v += V) conv_tile<O, V>(c, stride, output, v * lanes<T>);
        for (; v < stop; ++v) conv_tile<O, 1>(c, stride, output, v * lanes<T>);
      });
    }
  }
}

// The whole convolution, on several threads.
template <class T>
PYRECON_INLINE void convolve(const Conv<T>& c, const Planes<T>& planes, int threads) {
  // Pairs of vectors, which is what most tiles take; a thread is woken for 4096 products of each or more.
  const int64_t grain = 4096 / (c.inputs * c.taps * c.outputs) + 1;
  parallel_for(threads, (planes.vectors + 1) / 2, grain, [&](int64_t begin, int64_t end) {
    conv_part(c, planes.stride, 2 * begin, 2 * end < planes.vectors ? 2 * end : planes.vectors);
  });
}

// The part of c that reads `count` inputs `from` one on, backwards, with transposed and turned filters: its outputs are
// the inputs `at` of a filter with `inputs`. Where that filter ends if it is then complete, else where it starts.
template <class T>
PYRECON_INLINE T* turn(const Conv<T>& c, int64_t from, int64_t count, T* to, int64_t inputs, int64_t at,
                       bool complete) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t o = 0; o < c.outputs; ++o)
      for (int64_t t = 0; t < c.taps; ++t)
        to[(i * inputs + at + o) * c.taps + c.taps - 1 - t] = c.weight[(o * c.inputs + from + i) * c.taps + t];
  return complete ? to + count * inputs * c.taps : to;
}

// --- gradients of weights: correlations of a convolution's inputs with the gradient of its outputs -------------------
constexpr int correlation_width = 3;  // weights of a filter side by side: a row of 3x3 reads one plane
constexpr int most_correlated = conv_tile_size / correlation_width;

// O outputs by Q weights: a sum over places each, in registers.
template <int O, int Q, class T>
PYRECON_INLINE void correlation_tile(const T* grad, int64_t stride, const T* const* x, int64_t begin, int64_t end,
                                     T* weight, int64_t filter) {
  Vec<T> total[O][Q] = {};
  for (int64_t at = begin; at < end; at += lanes<T>) {
    Vec<T> value[Q];
    for (int q = 0; q < Q; ++q) value[q] = load(x[q] + at);
    for (int o = 0; o < O; ++o) {
      const Vec<T> g = load(grad + o * stride + at);
      for (int q = 0; q < Q; ++q) total[o][q] += g * value[q];
    }
  }
  for (int o = 0; o < O; ++o)
    for (int q = 0; q < Q; ++q) weight[o * filter + q] += sum<T>(total[o][q]);
}

// Adds the gradients of c's weights and biases to those at `weight`, given the gradient of its outputs, zero in
// margins.
template <class T>
PYRECON_INLINE void correlate(const Conv<T>& c, const T* grad, T* weight, const Planes<T>& planes, int threads) {
  constexpr int64_t strip = 120 * lanes<T>;  // of as many planes as a tile reads, in the first cache; sums restart
  const int64_t filter = c.inputs * c.taps, stride = planes.stride, used = planes.vectors * lanes<T>;
  const int64_t columns = (filter + correlation_width - 1) / correlation_width;
  const int64_t groups = (c.outputs + most_correlated - 1) / most_correlated;
  parallel_for(threads, columns, 4096 / (c.outputs * planes.vectors) + 1, [&](int64_t first, int64_t last) {
    for (int64_t begin = 0; begin < used; begin += strip) {
      const int64_t end = begin + strip < used ? begin + strip : used;
      for (int64_t column = first; column < last; ++column) {
        const int64_t from = column * correlation_width;
        with_count<correlation_width>(filter - from, [&](auto width) {
          constexpr int Q = decltype(width)::value;
          const T* x[Q];
          for (int q = 0; q < Q; ++q) x[q] = c.input((from + q) / c.taps, stride) + c.offsets[(from + q) % c.taps];
          for (int64_t g = 0; g < groups; ++g) {
            const int64_t output = c.outputs * g / groups, count = c.outputs * (g + 1) / groups - output;
            with_count<most_correlated>(count, [&](auto n) {
              correlation_tile<decltype(n)::value, Q>(grad + output * stride, stride, x, begin, end,
                                                      weight + output * filter + from, filter);
            });
          }
        });
      }
    }
  });
  for (int64_t o = 0; o < c.outputs; ++o) {
    Vec<T> total{};
    for (int64_t at = 0; at < used; at += lanes<T>) total += load(grad + o * stride + at);
    weight[c.outputs * filter + o] += sum<T>(total);
  }
}

// Gradients of weights are summed over so many groups of samples, then over the groups: the same numbers on any number
// of threads.
PYRECON_INLINE int64_t sum_groups(int64_t batch, bool for_weights) {
  constexpr int64_t most = 32;
  return for_weights && batch > most ? most : batch;
}
template <class T>
PYRECON_INLINE void add_groups(const T* sums, int64_t groups, int64_t count, T* out, int threads) {
  parallel_for(threads, count, 4096, [&](int64_t begin, int64_t end) {
    std::memset(out + begin, 0, (end - begin) * sizeof(T));
    for (int64_t group = 0; group < groups; ++group)
      for (int64_t i = begin; i < end; ++i) out[i] += sums[group * count + i];
  });
}

}  // namespace pyrecon::PYRECON_ISA
