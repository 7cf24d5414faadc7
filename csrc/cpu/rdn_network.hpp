// The residual dense network for one image, its feature maps in cache (cpu/conv.hpp), and its gradient from recorded
// maps. Its 3x3 convolutions of four channels and more go by Winograd's algorithm (cpu/winograd.hpp), those of its
// gradient do not.
//
// A plane is the image's rows with one zero after each, so that the neighbours of every pixel, beyond the borders too,
// are so many places away. Rows run along the longer axis of the image, for the fewest of them: 13 x 27 = 351 of 352
// lanes hold the 26 x 13 image, where 26 x 14 would take 364.
#pragma once

#include "cpu/rdn.hpp"
#include "cpu/winograd.hpp"

namespace pyrecon::PYRECON_ISA {

// Where the pixels of an image of rows x cols are in a plane.
struct PixelGrid {
  int64_t rows, cols;
  bool transposed = rows > cols;
  int64_t pitch = (transposed ? rows : cols) + 1;
  int64_t down = transposed ? 1 : pitch, right = transposed ? pitch : 1;  // to the next pixel of the image
  int64_t count = pitch * (transposed ? cols : rows);
  int64_t taps[9] = {-down - right, -down, right - down, -right, 0, right, down - right, down, down + right};
};

template <class T>
class RdnNetwork {
 public:
  // Recorded: every feature map has a place of its own, and a gradient can be taken.
  RdnNetwork(const RdnShape& shape, bool recorded, const T* weights, T* mask, int threads)
      : s_(shape),
        grid_{shape.rows, shape.cols},
        recorded_(recorded),
        weights_(weights),
        mask_(mask),
        threads_(threads) {}

  int64_t mask_memory() const { return planes_.body + round_up(winograd_.slack, Planes<T>::line); }
  int64_t patches_memory() const { return fast_ ? winograd_.memory() : 0; }
  int64_t filters_memory() const { return fast_ ? 2 * weights_count() : 0; }
  int64_t maps_memory() const { return planes_.memory(map_count()); }
  int64_t gradients_memory() const { return planes_.memory(gradient_count()); }
  int64_t weights_count() const {
    const int64_t f = s_.features;
    return of_block(s_.blocks) - weights_ + f * (s_.blocks * f + 1) + f * (9 * f + 1) + 9 * f + 1;
  }

  void make_mask() const {
    planes_.make_mask(mask_, [&](int64_t i) { return i % grid_.pitch != grid_.pitch - 1; });
    std::memset(mask_ + planes_.body, 0, winograd_.slack * sizeof(T));
  }
  // The filters of forward() for Winograd's algorithm, at twice their place in the weights.
  void make_filters(T* to) const {
    if (!fast_) return;
    const auto make = [&](const Conv<T>& c) {
      if (winograd_.fits(c)) winograd_.filters(c, to + 2 * (c.weight - weights_));
    };
    make(deep());
    for (int64_t b = 0; b < s_.blocks; ++b)
      for (int64_t j = 0; j < s_.layers; ++j) make(layer(b, j));
    make(smooth());
  }
  void clear_maps(T* memory) const {
    planes_.clear(memory + planes_.margin, map_count());
    if (!fast_) return;  // which does not write the zeros after rows
    for (int64_t p = 0; p < map_count(); ++p)
      for (int64_t r = 1; r <= grid_.count / grid_.pitch; ++r)
        memory[planes_.margin + p * planes_.stride + r * grid_.pitch - 1] = 0;
  }
  void clear_gradients(T* memory) const { planes_.clear(memory + planes_.margin, gradient_count()); }

  void place_maps(T* memory) {
    T* at = memory + planes_.margin;
    image_ = take(at, 1);
    shallow_ = take(at, s_.features);
    outputs_ = take(at, (s_.blocks + 1) * s_.features);
    grown_ = take(at, (recorded_ ? s_.blocks : 1) * s_.layers * s_.growth);
    fused_ = take(at, s_.features);
    summed_ = recorded_ ? take(at, s_.features) : outputs_;
    result_ = recorded_ ? take(at, 1) : fused_;
  }

  // With filters as make_filters() makes them, and memory for patches.
  void forward(const T* image, T* out, const T* filters, T* patches) const {
    const int64_t f = s_.features, g = s_.growth;
    const auto spread = [&](const T* first, int64_t count, int64_t channel) {
      if (fast_) winograd_.patches(first, planes_.stride, count, channel, patches, threads_);
    };
    const auto fast = [&](Conv<T> c, T* out, const T* skip = nullptr, bool relu = false) {
      if (!fast_ || !winograd_.fits(c)) return run(c, out, skip, relu);
      c.out = out, c.skip = skip, c.relu = relu;
      winograd_.convolve(c, filters + 2 * (c.weight - weights_), patches, planes_.stride, threads_);
    };
    each_pixel([&](int64_t i, int64_t at) { image_[at] = image[i]; });
    run(shallow(), shallow_);
    spread(shallow_, f, 0);
    fast(deep(), output(0));
    for (int64_t b = 0; b < s_.blocks; ++b) {
      spread(output(b), f, 0);
      for (int64_t j = 0; j < s_.layers; ++j) {
        fast(layer(b, j), grown(b, j), nullptr, true);
        if (j < s_.layers - 1) spread(grown(b, j), g, f + j * g);
      }
      run(merge(b), output(b + 1), output(b));
    }
    run(fuse(), fused_);
    spread(fused_, f, 0);
    fast(smooth(), summed_, shallow_);
    run(last(), result_, image_, true);
    each_pixel([&](int64_t i, int64_t at) { out[i] = result_[at]; });
  }

  // The gradient of the image, and unless it is null that of the weights, added to what is there. A gradient passes a
  // convolution backwards by one whose filters are transposed and turned: `mirrored`, as mirror() makes them. What
  // several convolutions send to the same maps is gathered by one, in the mirror image of a dense block.
  void backward(const T* grad, const T* mirrored, T* memory, T* grad_image, T* grad_weights) const {
    const int64_t f = s_.features, g = s_.growth;
    T* at = memory + planes_.margin;
    T *result = take(at, 1), *image = take(at, 1), *summed = take(at, f), *fused = take(at, f), *shallow = take(at, f);
    T *output = take(at, f), *other = take(at, f), *grown = take(at, s_.layers * g);
    const auto back = [&](int64_t taps, const T* from, int64_t count, int64_t outputs, const T* rest = nullptr,
                          int64_t more = 0) {
      Conv<T> c = conv(taps, from, count, rest, more, mirrored, outputs);
      mirrored = c.bias;
      c.bias = nullptr;
      return c;
    };
    const auto learn = [&](const Conv<T>& c, const T* of_outputs) {
      if (grad_weights) correlate(c, of_outputs, grad_weights + (c.weight - weights_), planes_, threads_);
    };
    each_pixel([&](int64_t i, int64_t p) { result[p] = result_[p] <= T{0} ? T{0} : grad[i]; });
    learn(last(), result);
    run(back(9, result, 1, f), summed);
    learn(smooth(), summed);
    run(back(9, summed, f, f), fused);
    learn(fuse(), fused);
    run(back(1, fused, f, f), output);
    for (int64_t b = s_.blocks - 1; b >= 0; --b) {
      learn(merge(b), output);
      for (int64_t j = s_.layers - 1; j >= 0; --j) {
        T *to = grown + j * g * planes_.stride, *later = to + g * planes_.stride;
        const int64_t count = (s_.layers - 1 - j) * g;
        run(back(1, output, f, g), to, nullptr, false, count == 0 ? this->grown(b, j) : nullptr);
        if (count > 0) run(back(9, later, count, g), to, to, false, this->grown(b, j));
        learn(layer(b, j), to);
      }
      run(back(1, output, f, f, fused, b > 0 ? f : 0), other, output);
      run(back(9, grown, s_.layers * g, f), other, other);
      T* next = other;
      other = output;
      output = next;
    }
    learn(deep(), output);
    run(back(9, output, f, f), shallow, summed);
    learn(this->shallow(), shallow);
    run(back(9, shallow, f, 1), image, result);
    each_pixel([&](int64_t i, int64_t p) { grad_image[i] = image[p]; });
  }

  // The filters of backward() in its order.
  void mirror(T* to) const {
    const int64_t f = s_.features, g = s_.growth;
    to = turn(last(), 0, f, to, 1, 0, true);
    to = turn(smooth(), 0, f, to, f, 0, true);
    to = turn(fuse(), (s_.blocks - 1) * f, f, to, f, 0, true);
    for (int64_t b = s_.blocks - 1; b >= 0; --b) {
      for (int64_t j = s_.layers - 1; j >= 0; --j) {
        to = turn(merge(b), f + j * g, g, to, f, 0, true);
        for (int64_t k = j + 1; k < s_.layers; ++k)
          to = turn(layer(b, k), f + j * g, g, to, (s_.layers - 1 - j) * g, (k - j - 1) * g, k == s_.layers - 1);
      }
      to = turn(merge(b), 0, f, to, b > 0 ? 2 * f : f, 0, b == 0);
      if (b > 0) to = turn(fuse(), (b - 1) * f, f, to, 2 * f, f, true);
      for (int64_t k = 0; k < s_.layers; ++k)
        to = turn(layer(b, k), 0, f, to, s_.layers * g, k * g, k == s_.layers - 1);
    }
    to = turn(deep(), 0, f, to, f, 0, true);
    turn(shallow(), 0, 1, to, f, 0, true);
  }

 private:
  int64_t map_count() const {
    const int64_t reused = 1 + s_.features * (s_.blocks + 3) + s_.layers * s_.growth;
    return recorded_ ? reused + 1 + s_.features + (s_.blocks - 1) * s_.layers * s_.growth : reused;
  }
  int64_t gradient_count() const { return 2 + 5 * s_.features + s_.layers * s_.growth; }
  PYRECON_MEMBER T* take(T*& at, int64_t count) const {
    T* first = at;
    at += count * planes_.stride;
    return first;
  }

  // --- the convolutions ------------------------------------------------------------------------------------------
  Conv<T> shallow() const { return conv(9, image_, 1, nullptr, 0, weights_, s_.features); }
  Conv<T> deep() const { return conv(9, shallow_, s_.features, nullptr, 0, shallow().bias + s_.features, s_.features); }
  Conv<T> layer(int64_t b, int64_t j) const {
    return conv(9, output(b), s_.features, grown(b, 0), j * s_.growth, of_block(b) + of_layers(j), s_.growth);
  }
  Conv<T> merge(int64_t b) const {
    const T* weight = of_block(b) + of_layers(s_.layers);
    return conv(1, output(b), s_.features, grown(b, 0), s_.layers * s_.growth, weight, s_.features);
  }
  Conv<T> fuse() const {
    return conv(1, output(1), s_.blocks * s_.features, nullptr, 0, of_block(s_.blocks), s_.features);
  }
  Conv<T> smooth() const { return conv(9, fused_, s_.features, nullptr, 0, fuse().bias + s_.features, s_.features); }
  Conv<T> last() const { return conv(9, summed_, s_.features, nullptr, 0, smooth().bias + s_.features, 1); }

  // Their weights: those of the first j layers of a block are an arithmetic series.
  int64_t of_layers(int64_t j) const {
    return j * s_.growth * (9 * s_.features + 1) + 9 * s_.growth * s_.growth * (j * (j - 1) / 2);
  }
  const T* of_block(int64_t b) const {
    const int64_t merged = s_.features * (s_.features + s_.layers * s_.growth + 1);
    return deep().bias + s_.features + b * (of_layers(s_.layers) + merged);
  }

  T* output(int64_t b) const { return outputs_ + b * s_.features * planes_.stride; }  // of block b - 1
  T* grown(int64_t b, int64_t j) const {
    return grown_ + ((recorded_ ? b * s_.layers : 0) + j) * s_.growth * planes_.stride;
  }

  // Of `count` planes, then of `more`.
  PYRECON_MEMBER Conv<T> conv(int64_t taps, const T* first, int64_t count, const T* rest, int64_t more, const T* weight,
                              int64_t outputs) const {
    const int64_t* offsets = grid_.taps + (taps == 1 ? 4 : 0);
    const T* bias = weight + outputs * (count + more) * taps;
    return {first, rest, count, count + more, outputs, taps, offsets, weight, bias, nullptr, mask_, nullptr, false};
  }
  void run(Conv<T> c, T* out, const T* skip = nullptr, bool relu = false, const T* gate = nullptr) const {
    c.out = out, c.skip = skip, c.relu = relu, c.gate = gate;
    convolve(c, planes_, threads_);
  }

  template <class Function>
  PYRECON_MEMBER void each_pixel(const Function& f) const {
    for (int64_t r = 0; r < s_.rows; ++r)
      for (int64_t c = 0; c < s_.cols; ++c) f(r * s_.cols + c, r * grid_.down + c * grid_.right);
  }

  RdnShape s_;
  PixelGrid grid_;
  Planes<T> planes_{grid_.count, grid_.pitch + 1};
  Winograd<T> winograd_{grid_.count / grid_.pitch, grid_.pitch, grid_.transposed,
                        s_.features + (s_.layers - 1) * s_.growth, s_.features > s_.growth ? s_.features : s_.growth};
  bool fast_ = winograd_.pays(planes_);
  bool recorded_;
  const T* weights_;
  T* mask_;
  int threads_;
  T *image_ = nullptr, *shallow_ = nullptr, *outputs_ = nullptr, *grown_ = nullptr, *fused_ = nullptr;
  T *summed_ = nullptr, *result_ = nullptr;
};

// Images one after another, in memory of one thread.
template <class T>
class RdnForward {
 public:
  // Where a network is recorded, each image brings its own maps.
  RdnForward(const RdnShape& s, bool recorded, const T* weights, const T* filters, T* memory, int threads)
      : network_(s, recorded, weights, memory, threads), recorded_(recorded), filters_(filters) {
    patches_ = memory + network_.mask_memory();
    network_.make_mask();
    if (!recorded) place(patches_ + network_.patches_memory());
  }
  static int64_t memory(const RdnNetwork<T>& any, bool recorded) {
    const int64_t maps = recorded ? 0 : any.maps_memory() + Winograd<T>::slack;
    return any.mask_memory() + any.patches_memory() + round_up(maps, Planes<T>::line);
  }

  void operator()(const T* image, T* out, T* maps = nullptr) {
    if (recorded_) place(maps);
    network_.forward(image, out, filters_, patches_);
  }

 private:
  void place(T* maps) {
    network_.clear_maps(maps);
    network_.place_maps(maps);
  }

  RdnNetwork<T> network_;
  bool recorded_;
  const T* filters_;
  T* patches_;
};

}  // namespace pyrecon::PYRECON_ISA
