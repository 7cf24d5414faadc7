// The network of a learned consistency, over a line of points with planes for its channels (cpu/conv.hpp). Points
// without a row are zero in the input and are so from the start: samples only overwrite those that have one. The same
// holds for the gradient of the output. A pullback runs the network again: its maps, 690 KB a sample of the released
// size, would take as long to read from memory as to make in cache.
#pragma once

#include "cpu/conv.hpp"
#include "cpu/learned_consistency.hpp"

namespace pyrecon::PYRECON_ISA {

constexpr int64_t learned_channels = 4;  // real and imaginary parts of y, then of v

// A part of the line, with the rows that may lie in it. What a network makes of its points is what it makes of them on
// the whole line, but for the first and last reach(s) of them.
struct LearnedWindow {
  int64_t first_row, rows, origin, points;

  static LearnedWindow whole(const LearnedShape& s) { return {0, s.rows, 0, s.points}; }
  static int64_t reach(const LearnedShape& s) { return s.layers * (s.kernel / 2); }
};

template <class T>
class LearnedNetwork {
 public:
  // For gradients every layer's maps have a place of their own, and two gradients of maps. Of a window, propose()
  // alone.
  LearnedNetwork(const LearnedShape& shape, const LearnedWindow& window, const T* weights, const int64_t* places,
                 bool gradients, T* memory, int threads)
      : s_(shape),
        window_(window),
        planes_(planes(s_, window)),
        weights_(weights),
        places_(places),
        gradients_(gradients),
        threads_(threads),
        mask_(memory) {
    const int64_t count = plane_count(s_, gradients);
    input_ = memory + planes_.body + planes_.margin;
    planes_.clear(input_, count);
    clear_points(input_, learned_channels);
    if (gradients) clear_points(gradient(s_.layers - 1), 2);
    // Beyond the line's ends there are zeros, whatever a layer makes of them.
    planes_.make_mask(mask_, [&](int64_t i) { return window.origin + i >= 0 && window.origin + i < s_.points; });
    offsets_ = reinterpret_cast<int64_t*>(input_ + count * planes_.stride);
    for (int64_t t = 0; t < s_.kernel; ++t) offsets_[t] = t - s_.kernel / 2;
  }

  static int64_t memory(const LearnedShape& s, const LearnedWindow& window, bool gradients) {
    const int64_t taps = s.kernel * static_cast<int64_t>(sizeof(int64_t) / sizeof(T));
    const Planes<T> p = planes(s, window);
    return round_up(p.body + p.memory(plane_count(s, gradients)) + taps, Planes<T>::line);
  }
  static int64_t weights_count(const LearnedShape& s) {
    const auto conv = [&](int64_t inputs, int64_t outputs) { return outputs * (inputs * s.kernel + 1); };
    if (s.layers == 1) return conv(learned_channels, 2);
    return conv(learned_channels, s.width) + (s.layers - 2) * conv(s.width, s.width) + conv(s.width, 2);
  }

  // N(y, v) into out: real parts of the window's rows, and `imaginary` numbers on the imaginary ones.
  void propose(const T* v, const T* y, T* out, int64_t imaginary_v, int64_t imaginary_y, int64_t imaginary) const {
    spread(y, imaginary_y, input_);
    spread(v, imaginary_v, input_ + 2 * planes_.stride);
    const T* weight = weights_;
    for (int64_t l = 0; l < s_.layers; ++l) {
      Conv<T> c = layer(l, weight);
      weight = c.bias + c.outputs;
      c.out = map(l), c.relu = l < s_.layers - 1;
      convolve(c, planes_, threads_);
    }
    gather(map(s_.layers - 1), out, imaginary);
  }
  void propose(const T* v, const T* y, T* out) const { propose(v, y, out, s_.rows, s_.rows, s_.rows); }

  // After propose(), and where its result has the gradient `grad`: what v (and y, unless null) have through it is
  // written (and added), that of the weights, unless null, is added. With `mirrored` as mirror() makes it.
  void backward(const T* grad, const T* mirrored, T* grad_v, T* grad_y, T* grad_weights) const {
    T* at = gradient(s_.layers - 1);
    spread(grad, s_.rows, at);
    const T* end = weights_ + weights_count(s_);
    for (int64_t l = s_.layers - 1; l >= 0; --l) {
      const int64_t outputs = l == s_.layers - 1 ? 2 : s_.width, inputs = l == 0 ? learned_channels : s_.width;
      end -= outputs * (inputs * s_.kernel + 1);
      if (grad_weights) correlate(layer(l, end), at, grad_weights + (end - weights_), planes_, threads_);
      const int64_t from = l == 0 && !grad_y ? 2 : 0;  // y's learned_channels come first
      Conv<T> c{at,
                at,
                outputs,
                outputs,
                inputs - from,
                s_.kernel,
                offsets_,
                mirrored + from * outputs * s_.kernel,
                nullptr,
                nullptr,
                mask_,
                gradient(l - 1),
                false};
      if (l > 0) c.gate = map(l - 1);
      mirrored += inputs * outputs * s_.kernel;
      at = c.out;
      convolve(c, planes_, threads_);
    }
    if (grad_y) {
      gather(at, grad_y, s_.rows, true);
      at += 2 * planes_.stride;
    }
    gather(at, grad_v, s_.rows);
  }

  // The filters of backward() in its order.
  void mirror(T* to) const {
    const T* end = weights_ + weights_count(s_);
    for (int64_t l = s_.layers - 1; l >= 0; --l) {
      const int64_t outputs = l == s_.layers - 1 ? 2 : s_.width, inputs = l == 0 ? learned_channels : s_.width;
      end -= outputs * (inputs * s_.kernel + 1);
      to = turn(layer(l, end), 0, inputs, to, outputs, 0, true);
    }
  }

 private:
  // Where row k of the window lies in it, or -1.
  int64_t place(int64_t k) const {
    const auto below = [](int64_t i, int64_t n) { return static_cast<uint64_t>(i) < static_cast<uint64_t>(n); };
    const int64_t on_line = places_[window_.first_row + k], at = on_line - window_.origin;
    return below(on_line, s_.points) && below(at, planes_.count) ? at : -1;
  }
  static int64_t widest(const LearnedShape& s) { return s.width > learned_channels ? s.width : learned_channels; }
  static int64_t plane_count(const LearnedShape& s, bool gradients) {
    return learned_channels + (gradients ? s.layers + 3 : 2) * widest(s);
  }
  static Planes<T> planes(const LearnedShape& s, const LearnedWindow& window) {
    return Planes<T>{window.points, s.kernel / 2};
  }

  T* map(int64_t l) const {
    return input_ + (learned_channels + (gradients_ ? l : l % 2) * widest(s_)) * planes_.stride;
  }
  // The first to receive one has its own: points without a row stay zero in it. The others take turns.
  T* gradient(int64_t l) const {
    return map(0) + (s_.layers + (l == s_.layers - 1 ? 2 : (l + 1) % 2)) * widest(s_) * planes_.stride;
  }
  Conv<T> layer(int64_t l, const T* weight) const {
    const int64_t inputs = l == 0 ? learned_channels : s_.width, outputs = l == s_.layers - 1 ? 2 : s_.width;
    const T *in = l == 0 ? input_ : map(l - 1), *bias = weight + outputs * inputs * s_.kernel;
    return {in, in, inputs, inputs, outputs, s_.kernel, offsets_, weight, bias, nullptr, mask_, nullptr, false};
  }

  void clear_points(T* first, int64_t count) const {
    for (int64_t p = 0; p < count; ++p) std::memset(first + p * planes_.stride, 0, planes_.count * sizeof(T));
  }
  // Rows of real and imaginary parts to two planes, and back: zero (or as it was) where there is no place.
  void spread(const T* rows, int64_t imaginary, T* to) const {
    for (int64_t k = 0; k < window_.rows; ++k) {
      const int64_t at = place(k);
      if (at < 0) continue;
      to[at] = rows[k];
      to[planes_.stride + at] = rows[imaginary + k];
    }
  }
  void gather(const T* from, T* rows, int64_t imaginary, bool add = false) const {
    for (int64_t part = 0; part < 2; ++part) {
      for (int64_t k = 0; k < window_.rows; ++k) {
        const int64_t at = place(k);
        T& row = rows[part * imaginary + k];
        const T value = at >= 0 ? from[part * planes_.stride + at] : T{0};
        row = add ? row + value : value;
      }
    }
  }

  LearnedShape s_;
  LearnedWindow window_;
  Planes<T> planes_;
  const T* weights_;
  const int64_t* places_;
  bool gradients_;
  int threads_;
  T *mask_, *input_;
  int64_t* offsets_;
};

}  // namespace pyrecon::PYRECON_ISA
