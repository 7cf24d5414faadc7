// The whole network for one image, its feature maps in cache (cpu/conv.hpp).
//
// A plane is the image's rows with one zero after each, so that the neighbours of every pixel, beyond the borders too,
// are so many places away. Rows run along the longer axis of the image, for the fewest of them: 13 x 27 = 351 of 352
// lanes hold the 26 x 13 image, where 26 x 14 would take 364.
#include "cpu/rdn.hpp"

#include "cpu/conv.hpp"

namespace pyrecon::PYRECON_ISA {
namespace {

// Where the pixels of an image of rows x cols are in a plane.
struct Grid {
  int64_t rows, cols;
  bool transposed = rows > cols;
  int64_t pitch = (transposed ? rows : cols) + 1;
  int64_t down = transposed ? 1 : pitch, right = transposed ? pitch : 1;  // to the next pixel of the image
  int64_t count = pitch * (transposed ? cols : rows);
  int64_t taps[9] = {-down - right, -down, right - down, -right, 0, right, down - right, down, down + right};
};

template <class T>
class Network {
 public:
  Network(const RdnShape& shape, const T* weights, T* memory, int threads)
      : s_(shape),
        grid_{shape.rows, shape.cols},
        planes_{grid_.count, grid_.pitch + 1},
        weights_(weights),
        threads_(threads),
        mask_(memory) {
    T* at = memory + planes_.body + planes_.margin;
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
    planes_.clear(image_, plane_count(s_));
    planes_.make_mask(mask_, [&](int64_t i) { return i % grid_.pitch != grid_.pitch - 1; });
  }

  static int64_t memory(const RdnShape& s) {
    const Grid grid{s.rows, s.cols};
    const Planes<T> planes{grid.count, grid.pitch + 1};
    return planes.body + planes.memory(plane_count(s));
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
  static int64_t plane_count(const RdnShape& s) { return 1 + s.features * (s.blocks + 3) + s.layers * s.growth; }

  // Of `inputs` planes, and of `more` of those grown in this block.
  PYRECON_MEMBER void conv(int64_t taps, const T* in, int64_t inputs, T* out, int64_t outputs, const T* skip = nullptr,
                           bool relu = false, int64_t more = 0) {
    const int64_t all = inputs + more;
    const T *weight = next_, *bias = next_ + outputs * all * taps;
    next_ = bias + outputs;
    const int64_t* offsets = grid_.taps + (taps == 1 ? 4 : 0);
    convolve(Conv<T>{in, grown_, inputs, all, outputs, taps, offsets, weight, bias, skip, mask_, out, relu}, planes_,
             threads_);
  }

  template <class Function>
  PYRECON_MEMBER void each_pixel(const Function& f) const {
    for (int64_t r = 0; r < s_.rows; ++r)
      for (int64_t c = 0; c < s_.cols; ++c) f(r * s_.cols + c, r * grid_.down + c * grid_.right);
  }

  RdnShape s_;
  Grid grid_;
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
