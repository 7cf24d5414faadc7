// The network runs over a line of points with planes for its channels (cpu/conv.hpp). Points without a row are zero in
// the input and are so from the start: samples only overwrite those that have one. The same holds for the gradient of
// the output. A pullback runs the network again: its maps, 690 KB a sample of the released size, would take as long to
// read from memory as to make in cache.
#include "cpu/learned_consistency.hpp"

#include "cpu/ball.hpp"
#include "cpu/conv.hpp"

namespace pyrecon::PYRECON_ISA {
namespace {

constexpr int64_t channels = 4;  // real and imaginary parts of y, then of v

template <class T>
class Network {
 public:
  // For gradients every layer's maps have a place of their own, and two gradients of maps.
  Network(const LearnedShape& shape, const T* weights, const int64_t* places, bool gradients, T* memory, int threads)
      : s_(shape),
        planes_(planes(s_)),
        weights_(weights),
        places_(places),
        gradients_(gradients),
        threads_(threads),
        mask_(memory) {
    const int64_t count = plane_count(s_, gradients);
    input_ = memory + planes_.body + planes_.margin;
    planes_.clear(input_, count);
    clear_points(input_, channels);
    if (gradients) clear_points(gradient(s_.layers - 1), 2);
    planes_.make_mask(mask_, [](int64_t) { return true; });
    offsets_ = reinterpret_cast<int64_t*>(input_ + count * planes_.stride);
    for (int64_t t = 0; t < s_.kernel; ++t) offsets_[t] = t - s_.kernel / 2;
  }

  static int64_t memory(const LearnedShape& s, bool gradients) {
    const int64_t taps = s.kernel * static_cast<int64_t>(sizeof(int64_t) / sizeof(T));
    return round_up(planes(s).body + planes(s).memory(plane_count(s, gradients)) + taps, Planes<T>::line);
  }
  static int64_t weights_count(const LearnedShape& s) {
    const auto conv = [&](int64_t inputs, int64_t outputs) { return outputs * (inputs * s.kernel + 1); };
    if (s.layers == 1) return conv(channels, 2);
    return conv(channels, s.width) + (s.layers - 2) * conv(s.width, s.width) + conv(s.width, 2);
  }

  // N(y, v) into out.
  void propose(const T* v, const T* y, T* out) const {
    spread(y, input_);
    spread(v, input_ + 2 * planes_.stride);
    const T* weight = weights_;
    for (int64_t l = 0; l < s_.layers; ++l) {
      Conv<T> c = layer(l, weight);
      weight = c.bias + c.outputs;
      c.out = map(l), c.relu = l < s_.layers - 1;
      convolve(c, planes_, threads_);
    }
    gather(map(s_.layers - 1), out);
  }

  // After propose(), and where its result has the gradient `grad`: what v (and y, unless null) have through it is
  // written (and added), that of the weights, unless null, is added. With `mirrored` as mirror() makes it.
  void backward(const T* grad, const T* mirrored, T* grad_v, T* grad_y, T* grad_weights) const {
    T* at = gradient(s_.layers - 1);
    spread(grad, at);
    const T* end = weights_ + weights_count(s_);
    for (int64_t l = s_.layers - 1; l >= 0; --l) {
      const int64_t outputs = l == s_.layers - 1 ? 2 : s_.width, inputs = l == 0 ? channels : s_.width;
      end -= outputs * (inputs * s_.kernel + 1);
      if (grad_weights) correlate(layer(l, end), at, grad_weights + (end - weights_), planes_, threads_);
      const int64_t from = l == 0 && !grad_y ? 2 : 0;  // y's channels come first
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
      gather(at, grad_y, true);
      at += 2 * planes_.stride;
    }
    gather(at, grad_v);
  }

  // The filters of backward() in its order.
  void mirror(T* to) const {
    const T* end = weights_ + weights_count(s_);
    for (int64_t l = s_.layers - 1; l >= 0; --l) {
      const int64_t outputs = l == s_.layers - 1 ? 2 : s_.width, inputs = l == 0 ? channels : s_.width;
      end -= outputs * (inputs * s_.kernel + 1);
      to = turn(layer(l, end), 0, inputs, to, outputs, 0, true);
    }
  }

 private:
  bool has_place(int64_t k) const { return static_cast<uint64_t>(places_[k]) < static_cast<uint64_t>(s_.points); }
  static int64_t widest(const LearnedShape& s) { return s.width > channels ? s.width : channels; }
  static int64_t plane_count(const LearnedShape& s, bool gradients) {
    return channels + (gradients ? s.layers + 3 : 2) * widest(s);
  }
  static Planes<T> planes(const LearnedShape& s) { return Planes<T>{s.points, s.kernel / 2}; }

  T* map(int64_t l) const { return input_ + (channels + (gradients_ ? l : l % 2) * widest(s_)) * planes_.stride; }
  // The first to receive one has its own: points without a row stay zero in it. The others take turns.
  T* gradient(int64_t l) const {
    return map(0) + (s_.layers + (l == s_.layers - 1 ? 2 : (l + 1) % 2)) * widest(s_) * planes_.stride;
  }
  Conv<T> layer(int64_t l, const T* weight) const {
    const int64_t inputs = l == 0 ? channels : s_.width, outputs = l == s_.layers - 1 ? 2 : s_.width;
    const T *in = l == 0 ? input_ : map(l - 1), *bias = weight + outputs * inputs * s_.kernel;
    return {in, in, inputs, inputs, outputs, s_.kernel, offsets_, weight, bias, nullptr, mask_, nullptr, false};
  }

  void clear_points(T* first, int64_t count) const {
    for (int64_t p = 0; p < count; ++p) std::memset(first + p * planes_.stride, 0, planes_.count * sizeof(T));
  }
  // Rows of real and imaginary parts to two planes, and back: zero (or as it was) where there is no place.
  void spread(const T* rows, T* to) const {
    for (int64_t part = 0; part < 2; ++part)
      for (int64_t k = 0; k < s_.rows; ++k)
        if (has_place(k)) to[part * planes_.stride + places_[k]] = rows[part * s_.rows + k];
  }
  void gather(const T* from, T* rows, bool add = false) const {
    for (int64_t part = 0; part < 2; ++part) {
      for (int64_t k = 0; k < s_.rows; ++k) {
        T& row = rows[part * s_.rows + k];
        const T value = has_place(k) ? from[part * planes_.stride + places_[k]] : T{0};
        row = add ? row + value : value;
      }
    }
  }

  LearnedShape s_;
  Planes<T> planes_;
  const T* weights_;
  const int64_t* places_;
  bool gradients_;
  int threads_;
  T *mask_, *input_;
  int64_t* offsets_;
};

// out, a proposal, moved into the ball; as released, y is added where it should have been subtracted before.
template <class T>
PYRECON_INLINE void move_in(const T* y, T radius, bool released, T* out, int64_t n) {
  const double squared = squared_distance(out, y, n);
  if (!released) return move(out, y, shrink(squared, radius), out, n);
  const T scale = static_cast<T>(shrink(squared, radius).scale);  // radius / max(distance, radius)
  for (int64_t i = 0; i < n; ++i) out[i] = y[i] + out[i] * scale;
}

// From the proposal N to the gradient of it, in place: with D = N - y, s = radius / |D| < 1 outside the ball, and c =
// <grad, what s multiplies> it is s grad - (s c / |D|^2) D. The rest of grad goes to y directly, c / |D| to radius.
template <class T>
PYRECON_INLINE void move_back(const T* grad, const T* y, T radius, bool released, T* proposal, T* grad_y,
                              T* grad_radius, int64_t n) {
  const double squared = squared_distance(proposal, y, n);
  const Shrink s = shrink(squared, radius);
  double along = 0;
  if (s.outside) {
    constexpr int64_t block = 512;  // as in squared_distance()
    for (int64_t begin = 0; begin < n; begin += block) {
      T part = 0;
      for (int64_t i = begin; i < n && i < begin + block; ++i)
        part += grad[i] * (released ? proposal[i] : proposal[i] - y[i]);
      along += part;
    }
  }
  *grad_radius = static_cast<T>(s.outside ? along / std::sqrt(squared) : 0);
  const T scale = static_cast<T>(s.scale), pull = static_cast<T>(s.outside ? s.scale * along / squared : 0);
  const T direct = released ? T{1} : static_cast<T>(1 - s.scale);
  for (int64_t i = 0; i < n; ++i) {
    const T pulled = pull * (proposal[i] - y[i]);
    if (grad_y) grad_y[i] = direct * grad[i] + pulled;
    proposal[i] = scale * grad[i] - pulled;
  }
}

}  // namespace

template <class T>
void learned_consistency(const T* v, const T* y, const T* radius, const T* weights, const int64_t* places, T* out,
                         const LearnedShape& s, bool released, int threads) {
  if (s.batch == 0) return;
  const int shares = s.batch < threads ? 1 : threads;  // samples side by side, or all threads on each
  const int64_t memory = Network<T>::memory(s, false), n = 2 * s.rows;
  const Scratch<T> scratch(shares * memory);
  parallel_shares(shares, s.batch, [&](int share, int64_t begin, int64_t end) {
    T* own = scratch.get() + share * memory;
    const Network<T> network(s, weights, places, false, own, shares == 1 ? threads : 1);
    for (int64_t b = begin; b < end; ++b) {
      network.propose(v + b * n, y + b * n, out + b * n);
      move_in(y + b * n, radius[b], released, out + b * n, n);
    }
  });
}

template <class T>
void learned_consistency_backward(const T* grad, const T* v, const T* y, const T* radius, const T* weights,
                                  const int64_t* places, T* grad_v, T* grad_y, T* grad_radius, T* grad_weights,
                                  const LearnedShape& s, bool released, int threads) {
  const int64_t count = Network<T>::weights_count(s), memory = Network<T>::memory(s, true), n = 2 * s.rows;
  const int64_t groups = sum_groups(s.batch, grad_weights != nullptr);
  const int shares = groups < threads ? 1 : threads;
  const Scratch<T> scratch(shares * memory), mirrored(count), sums(grad_weights ? groups * count : 0);
  Network<T>(s, weights, places, true, scratch.get(), 1).mirror(mirrored.get());
  parallel_shares(shares, groups, [&](int share, int64_t first, int64_t last) {
    T* own = scratch.get() + share * memory;
    const Network<T> network(s, weights, places, true, own, shares == 1 ? threads : 1);
    for (int64_t group = first; group < last; ++group) {
      T* sum = grad_weights ? sums.get() + group * count : nullptr;
      if (sum) std::memset(sum, 0, count * sizeof(T));
      for (int64_t b = s.batch * group / groups; b < s.batch * (group + 1) / groups; ++b) {
        const int64_t at = b * n;
        T *to_y = grad_y ? grad_y + at : nullptr, *proposal = grad_v + at;
        network.propose(v + at, y + at, proposal);
        move_back(grad + at, y + at, radius[b], released, proposal, to_y, grad_radius + b, n);
        network.backward(proposal, mirrored.get(), grad_v + at, to_y, sum);
      }
    }
  });
  if (grad_weights) add_groups(sums.get(), groups, count, grad_weights, threads);
}

#define PYRECON_INSTANTIATE(T)                                                                                         \
  template void learned_consistency(const T*, const T*, const T*, const T*, const int64_t*, T*, const LearnedShape&,   \
                                    bool, int);                                                                        \
  template void learned_consistency_backward(const T*, const T*, const T*, const T*, const T*, const int64_t*, T*, T*, \
                                             T*, T*, const LearnedShape&, bool, int);
PYRECON_INSTANTIATE(float)
PYRECON_INSTANTIATE(double)

}  // namespace pyrecon::PYRECON_ISA
