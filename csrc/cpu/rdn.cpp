// The whole network for one image, its feature maps in cache: lanes are pixels, weights are broadcast.
//
// A feature map is a plane of rows with one zero after each, and a margin of zeros before and after: then a convolution
// reads every neighbour of a vector of pixels as the vector so many places on, borders included. Results are masked so
// that these zeros stay. Rows run along the longer axis of the image, for the fewest of them: 13 x 27 = 351 of 352
// lanes hold the 26 x 13 image, where 26 x 14 would take 364.
//
// Weights are read as torch stores them, (output, input, tap): the weights of a few outputs are as many streams.
// Nothing is concatenated: a convolution reads the planes of two ranges.
#include "cpu/rdn.hpp"

#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"

namespace pyrecon::PYRECON_ISA {
namespace {

constexpr int tile = vector_registers == 32 ? 24 : 12;  // accumulators: outputs times vectors of pixels
constexpr int most_outputs = tile / 2;

PYRECON_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Where the pixels of a plane are; the image itself is rows x cols.
template <class T>
struct Planes {
  int64_t rows, cols;
  bool transposed = rows > cols;
  int64_t pitch = (transposed ? rows : cols) + 1;
  int64_t down = transposed ? 1 : pitch, right = transposed ? pitch : 1;  // to the next pixel of the image
  int64_t taps[9] = {-down - right, -down, right - down, -right, 0, right, down - right, down, down + right};
  int64_t count = pitch * (transposed ? cols : rows);
  int64_t vectors = (count + lanes<T> - 1) / lanes<T>;
  static constexpr int64_t line = 64 / sizeof(T);
  int64_t margin = round_up(pitch + 1, line) + (odd(round_up(pitch + 1, line) + round_up(count, line)) ? 0 : line);
  int64_t stride = round_up(count, line) + margin;  // an odd number of cache lines: planes spread over the cache's sets

  // Whether so many numbers are an odd number of cache lines.
  static constexpr bool odd(int64_t n) { return n / line % 2 != 0; }
  int64_t memory(int64_t planes) const { return margin + planes * stride; }  // the margins between planes are shared
};

// out = [relu](skip + bias + weight * in); the inputs are the planes of `first`, `split` of them, and of `rest`.
template <class T>
struct Conv {
  const T *first, *rest;
  int64_t split, inputs, outputs, taps;  // taps: 9 for a 3x3 filter, 1 for 1x1
  const T *weight, *bias, *skip;
  T* out;
  bool relu;
};

// O outputs from `output` for V vectors of pixels from `at`.
template <int O, int V, class T>
PYRECON_INLINE void conv_tile(const Conv<T>& c, const Planes<T>& p, const T* mask, int64_t output, int64_t at) {
  const int64_t filter = c.inputs * c.taps, *offset = p.taps + (c.taps == 1 ? 4 : 0);
  const T* w = c.weight + output * filter;
  Vec<T> total[O][V];
  for (int o = 0; o < O; ++o)
    for (int v = 0; v < V; ++v) total[o][v] = splat(c.bias[output + o]);
  for (int64_t i = 0; i < c.inputs; ++i) {
    const T* x = (i < c.split ? c.first + i * p.stride : c.rest + (i - c.split) * p.stride) + at;
#pragma GCC unroll 1  // unrolled, it reads ahead into registers that it does not have: 18 % slower on AVX2
    for (int64_t t = 0; t < c.taps; ++t, ++w) {
      const T* from = x + offset[t];
      Vec<T> value[V];
      for (int v = 0; v < V; ++v) value[v] = load(from + v * lanes<T>);
      for (int o = 0; o < O; ++o) {
        const Vec<T> wo = splat(w[o * filter]);
        for (int v = 0; v < V; ++v) total[o][v] += wo * value[v];
      }
    }
  }
  for (int o = 0; o < O; ++o) {
    for (int v = 0; v < V; ++v) {
      const int64_t i = (output + o) * p.stride + at + v * lanes<T>;
      Vec<T> value = total[o][v];
      if (c.skip) value += load(c.skip + i);
      if (c.relu) value = value < Vec<T>{} ? Vec<T>{} : value;  // keeps a NaN
      using Bits = typename VecOf<T>::mask;
      store<T>(c.out + i, (Vec<T>)((Bits)value & (Bits)load(mask + at + v * lanes<T>)));
    }
  }
}

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

// All outputs, for the vectors [begin, end) of pixels, in strips that stay in cache for all groups of outputs.
template <class T>
void conv_part(const Conv<T>& c, const Planes<T>& p, const T* mask, int64_t begin, int64_t end) {
  constexpr int64_t strip = 120;
  const int64_t groups = (c.outputs + most_outputs - 1) / most_outputs;
  for (; begin < end; begin += strip) {
    const int64_t stop = begin + strip < end ? begin + strip : end;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t output = c.outputs * g / groups, count = c.outputs * (g + 1) / groups - output;
      with_count<most_outputs>(count, [&](auto n) {
        constexpr int O = decltype(n)::value, V = tile / O < 6 ? tile / O : 6;
        int64_t v = begin;
        for (; v + V <= stop; v += V) conv_tile<O, V>(c, p, mask, output, v * lanes<T>);
        for (; v < stop; ++v) conv_tile<O, 1>(c, p, mask, output, v * lanes<T>);
      });
    }
  }
}

template <class T>
class Network {
 public:
  Network(const RdnShape& shape, const T* weights, T* memory, int threads)
      : s_(shape), planes_{shape.rows, shape.cols}, weights_(weights), threads_(threads) {
    mask_ = memory;
    T* at = memory + mask_size() + planes_.margin;
    const auto take = [&](int64_t count) {
      T* first = at;
      at += count * planes_.stride;
      return first;
    };
    image_ = take(1);
    shallow_ = take(s_.features);
    outputs_ = take((s_.blocks + 1) * s_.features);
    grown_ = take(s_.layers * s_.growth);
    fused_ = take(s_.features);
    for (int64_t i = 0; i < mask_size(); ++i)
      std::memset(mask_ + i, i < planes_.count && i % planes_.pitch != planes_.pitch - 1 ? 0xff : 0, sizeof(T));
    zero(image_ - planes_.margin, planes_.margin);
    const int64_t used = planes_.vectors * lanes<T>;
    for (T* plane = image_; plane < at; plane += planes_.stride) zero(plane + used, planes_.stride - used);
    zero(image_, used);
  }

  static int64_t memory(const RdnShape& s) {
    const Planes<T> planes{s.rows, s.cols};
    return planes.vectors * lanes<T> + planes.line +
           planes.memory(1 + s.features * (s.blocks + 3) + s.layers * s.growth);
  }

  void forward(const T* image, T* out) {
    next_ = weights_;
    T* x = outputs_;
    const int64_t f = s_.features, g = s_.growth, stride = planes_.stride;
    each_pixel([&](int64_t i, int64_t at) { image_[at] = image[i]; });
    conv(9, image_, 1, shallow_, f);
    conv(9, shallow_, f, x, f);
    for (int64_t block = 0; block < s_.blocks; ++block, x += f * stride) {
      for (int64_t layer = 0; layer < s_.layers; ++layer)
        conv(9, x, f, grown_ + layer * g * stride, g, nullptr, true, layer * g);
      conv(1, x, f, x + f * stride, f, x, false, s_.layers * g);
    }
    conv(1, outputs_ + f * stride, s_.blocks * f, fused_, f);
    conv(9, fused_, f, outputs_, f, shallow_);
    conv(9, outputs_, f, fused_, 1, image_, true);
    each_pixel([&](int64_t i, int64_t at) { out[i] = fused_[at]; });
  }

 private:
  // Of `inputs` planes, and of `more` of those grown in this block.
  PYRECON_MEMBER void conv(int64_t taps, const T* in, int64_t inputs, T* out, int64_t outputs, const T* skip = nullptr,
                           bool relu = false, int64_t more = 0) {
    const int64_t all = inputs + more, filters = outputs * all * taps;
    const Conv<T> c{in, grown_, inputs, all, outputs, taps, next_, next_ + filters, skip, out, relu};
    next_ += filters + outputs;
    // Pairs of vectors, which is what most tiles take; a thread is woken for 4096 products of each or more.
    parallel_for(threads_, (planes_.vectors + 1) / 2, 4096 / filters + 1, [&](int64_t begin, int64_t end) {
      conv_part(c, planes_, mask_, 2 * begin, 2 * end < planes_.vectors ? 2 * end : planes_.vectors);
    });
  }

  template <class Function>
  PYRECON_MEMBER void each_pixel(const Function& f) const {
    for (int64_t r = 0; r < s_.rows; ++r)
      for (int64_t c = 0; c < s_.cols; ++c) f(r * s_.cols + c, r * planes_.down + c * planes_.right);
  }

  static void zero(T* at, int64_t count) { std::memset(at, 0, count * sizeof(T)); }
  int64_t mask_size() const { return round_up(planes_.vectors * lanes<T>, planes_.line); }

  RdnShape s_;
  Planes<T> planes_;
  const T *weights_, *next_ = nullptr;
  int threads_;
  T *mask_, *image_, *shallow_, *outputs_, *grown_, *fused_;
};

}  // namespace

template <class T>
void rdn(const T* image, const T* weights, T* out, const RdnShape& s, int threads) {
  if (s.batch == 0) return;
  const int shares = s.batch < threads ? 1 : threads;  // images side by side, or all threads on each
  const int64_t memory = round_up(Network<T>::memory(s), Planes<T>::line), pixels = s.rows * s.cols;
  const Scratch<T> scratch(shares * memory);
  parallel_shares(shares, s.batch, [&](int share, int64_t begin, int64_t end) {
    Network<T> network(s, weights, scratch.get() + share * memory, shares == 1 ? threads : 1);
    for (int64_t b = begin; b < end; ++b) network.forward(image + b * pixels, out + b * pixels);
  });
}

template void rdn(const float*, const float*, float*, const RdnShape&, int);
template void rdn(const double*, const double*, double*, const RdnShape&, int);

}  // namespace pyrecon::PYRECON_ISA
