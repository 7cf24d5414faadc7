// The residual dense network and its gradient, see pyrecon/ops/_rdn.py for the law and for the layout of maps.
#pragma once

#include <cstdint>

#include "cpu/dispatch.hpp"

namespace pyrecon {

struct RdnShape {
  int64_t batch, rows, cols, features, growth, blocks, layers;
};

}  // namespace pyrecon

// image, grad, out, grad_image (batch, rows, cols), sizes at least 1; weights, grad_weights packed. maps: all feature
// maps of each image, written by rdn() unless null; only read by rdn_backward(). grad_weights may be null.
PYRECON_PER_ISA(template <class T>
                void rdn(const T* image, const T* weights, T* out, T* maps, const RdnShape& shape, int threads);
                template <class T> void rdn_backward(const T* grad, T* maps, const T* weights, T* grad_image,
                                                     T* grad_weights, const RdnShape& shape, int threads);)
