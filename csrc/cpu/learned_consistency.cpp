// Proposals of a network moved into the ball, and their gradient, see cpu/learned_network.hpp.
#include "cpu/learned_consistency.hpp"

#include "cpu/ball.hpp"
#include "cpu/learned_network.hpp"

namespace pyrecon::PYRECON_ISA {
namespace {

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
  const LearnedWindow all = LearnedWindow::whole(s);
  const int64_t memory = LearnedNetwork<T>::memory(s, all, false), n = 2 * s.rows;
  const Scratch<T> scratch(shares * memory);
  parallel_shares(shares, s.batch, [&](int share, int64_t begin, int64_t end) {
    T* own = scratch.get() + share * memory;
    const LearnedNetwork<T> network(s, all, weights, places, false, own, shares == 1 ? threads : 1);
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
  const LearnedWindow all = LearnedWindow::whole(s);
  const int64_t count = LearnedNetwork<T>::weights_count(s), memory = LearnedNetwork<T>::memory(s, all, true);
  const int64_t n = 2 * s.rows;
  const int64_t groups = sum_groups(s.batch, grad_weights != nullptr);
  const int shares = groups < threads ? 1 : threads;
  const Scratch<T> scratch(shares * memory), mirrored(count), sums(grad_weights ? groups * count : 0);
  LearnedNetwork<T>(s, all, weights, places, true, scratch.get(), 1).mirror(mirrored.get());
  parallel_shares(shares, groups, [&](int share, int64_t first, int64_t last) {
    T* own = scratch.get() + share * memory;
    const LearnedNetwork<T> network(s, all, weights, places, true, own, shares == 1 ? threads : 1);
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
