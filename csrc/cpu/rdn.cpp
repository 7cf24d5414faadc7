// The whole network for a batch of images, see cpu/rdn_network.hpp.
#include "cpu/rdn.hpp"

#include "cpu/rdn_network.hpp"

namespace pyrecon::PYRECON_ISA {

template <class T>
void rdn(const T* image, const T* weights, T* out, T* maps, const RdnShape& s, int threads) {
  if (s.batch == 0) return;
  const bool recorded = maps != nullptr;
  const RdnNetwork<T> any(s, recorded, weights, nullptr, 1);
  const int shares = s.batch < threads ? 1 : threads;  // images side by side, or all threads on each
  const int64_t size = any.maps_memory(), pixels = s.rows * s.cols, memory = RdnForward<T>::memory(any, recorded);
  const Scratch<T> scratch(shares * memory), filters(any.filters_memory());
  any.make_filters(filters.get());
  parallel_shares(shares, s.batch, [&](int share, int64_t begin, int64_t end) {
    T* own = scratch.get() + share * memory;
    RdnForward<T> network(s, recorded, weights, filters.get(), own, shares == 1 ? threads : 1);
    for (int64_t b = begin; b < end; ++b)
      network(image + b * pixels, out + b * pixels, recorded ? maps + b * size : nullptr);
  });
}

template <class T>
void rdn_backward(const T* grad, T* maps, const T* weights, T* grad_image, T* grad_weights, const RdnShape& s,
                  int threads) {
  RdnNetwork<T> any(s, true, weights, nullptr, 1);
  const int64_t count = any.weights_count(), pixels = s.rows * s.cols, size = any.maps_memory();
  const int64_t groups = sum_groups(s.batch, grad_weights != nullptr);
  const int shares = groups < threads ? 1 : threads;
  const int64_t memory = any.mask_memory() + round_up(any.gradients_memory(), Planes<T>::line);
  const Scratch<T> scratch(shares * memory), mirrored(count), sums(grad_weights ? groups * count : 0);
  any.place_maps(maps);
  any.mirror(mirrored.get());
  parallel_shares(shares, groups, [&](int share, int64_t begin, int64_t end) {
    T *mask = scratch.get() + share * memory, *gradients = mask + any.mask_memory();
    RdnNetwork<T> network(s, true, weights, mask, shares == 1 ? threads : 1);
    network.make_mask();
    network.clear_gradients(gradients);
    for (int64_t group = begin; group < end; ++group) {
      T* sum = grad_weights ? sums.get() + group * count : nullptr;
      if (sum) std::memset(sum, 0, count * sizeof(T));
      for (int64_t b = s.batch * group / groups; b < s.batch * (group + 1) / groups; ++b) {
        network.place_maps(maps + b * size);
        network.backward(grad + b * pixels, mirrored.get(), gradients, grad_image + b * pixels, sum);
      }
    }
  });
  if (grad_weights) add_groups(sums.get(), groups, count, grad_weights, threads);
}

template void rdn(const float*, const float*, float*, float*, const RdnShape&, int);
template void rdn(const double*, const double*, double*, double*, const RdnShape&, int);
template void rdn_backward(const float*, float*, const float*, float*, float*, const RdnShape&, int);
template void rdn_backward(const double*, double*, const double*, double*, double*, const RdnShape&, int);

}  // namespace pyrecon::PYRECON_ISA
