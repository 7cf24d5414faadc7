// The network runs over a line of points with planes for its channels (cpu/conv.hpp). Points without a row are zero in
// the input and are so from the start: samples only overwrite those that have one.
#include "cpu/learned_consistency.hpp"

#include "cpu/ball.hpp"
#include "cpu/conv.hpp"

namespace pyrecon::PYRECON_ISA {
namespace {

constexpr int64_t channels = 4;  // real and imaginary parts of y, then of v

template <class T>
class Network {
 public:
  Network(const LearnedShape& shape, const T* weights, const int64_t* places, T* memory, int threads)
      : s_(shape), planes_(planes(s_)), weights_(weights), places_(places), threads_(threads), mask_(memory) {
    input_ = memory + planes_.body + planes_.margin;
    planes_.clear(input_, plane_count(s_));
    for (int64_t p = 1; p < channels; ++p)
      std::memset(input_ + p * planes_.stride, 0, planes_.vectors * lanes<T> * sizeof(T));
    planes_.make_mask(mask_, [](int64_t) { return true; });
    offsets_ = reinterpret_cast<int64_t*>(input_ + plane_count(s_) * planes_.stride);
    for (int64_t t = 0; t < s_.kernel; ++t) offsets_[t] = t - s_.kernel / 2;
  }

  static int64_t memory(const LearnedShape& s) {
    const int64_t taps = s.kernel * static_cast<int64_t>(sizeof(int64_t) / sizeof(T));
    return planes(s).body + planes(s).memory(plane_count(s)) + taps;
  }

  // N(y, v) into out.
  void propose(const T* v, const T* y, T* out) {
    const int64_t stride = planes_.stride;
    for (int64_t part = 0; part < 2; ++part) {
      T *to_y = input_ + part * stride, *to_v = to_y + 2 * stride;
      for (int64_t k = 0; k < s_.rows; ++k) {
        if (!has_place(k)) continue;
        to_y[places_[k]] = y[part * s_.rows + k];
        to_v[places_[k]] = v[part * s_.rows + k];
      }
    }
    const T *in = input_, *next = weights_;
    T *to = input_ + channels * stride, *other = to + widest(s_) * stride;
    for (int64_t layer = 0; layer < s_.layers; ++layer) {
      const bool last = layer == s_.layers - 1;
      const int64_t inputs = layer == 0 ? channels : s_.width, outputs = last ? 2 : s_.width;
      const T *weight = next, *bias = next + outputs * inputs * s_.kernel;
      next = bias + outputs;
      convolve(Conv<T>{in, in, inputs, inputs, outputs, s_.kernel, offsets_, weight, bias, nullptr, mask_, to, !last},
               planes_, threads_);
      T* made = to;
      in = made;
      to = other;
      other = made;
    }
    for (int64_t part = 0; part < 2; ++part)
      for (int64_t k = 0; k < s_.rows; ++k)
        out[part * s_.rows + k] = has_place(k) ? in[part * stride + places_[k]] : T{0};
  }

 private:
  bool has_place(int64_t k) const { return static_cast<uint64_t>(places_[k]) < static_cast<uint64_t>(s_.points); }
  static int64_t widest(const LearnedShape& s) { return s.width > 2 ? s.width : 2; }
  static int64_t plane_count(const LearnedShape& s) { return channels + 2 * widest(s); }
  static Planes<T> planes(const LearnedShape& s) { return Planes<T>{s.points, s.kernel / 2}; }

  LearnedShape s_;
  Planes<T> planes_;
  const T* weights_;
  const int64_t* places_;
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

}  // namespace

template <class T>
void learned_consistency(const T* v, const T* y, const T* radius, const T* weights, const int64_t* places, T* out,
                         const LearnedShape& s, bool released, int threads) {
  if (s.batch == 0) return;
  const int shares = s.batch < threads ? 1 : threads;  // samples side by side, or all threads on each
  const int64_t memory = round_up(Network<T>::memory(s), Planes<T>::line), n = 2 * s.rows;
  const Scratch<T> scratch(shares * memory);
  parallel_shares(shares, s.batch, [&](int share, int64_t begin, int64_t end) {
    Network<T> network(s, weights, places, scratch.get() + share * memory, shares == 1 ? threads : 1);
    for (int64_t b = begin; b < end; ++b) {
      network.propose(v + b * n, y + b * n, out + b * n);
      move_in(y + b * n, radius[b], released, out + b * n, n);
    }
  });
}

template void learned_consistency(const float*, const float*, const float*, const float*, const int64_t*, float*,
                                  const LearnedShape&, bool, int);
template void learned_consistency(const double*, const double*, const double*, const double*, const int64_t*, double*,
                                  const LearnedShape&, bool, int);

}  // namespace pyrecon::PYRECON_ISA
