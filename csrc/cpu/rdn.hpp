// Forward pass of the residual dense network, see pyrecon/ops/rdn.py for the law.
#pragma once

#include <cstdint>

#include "cpu/dispatch.hpp"

namespace pyrecon {

struct RdnShape {
  int64_t batch, rows, cols, features, growth, blocks, layers;
};

}  // namespace pyrecon

// image, out (batch, rows, cols), sizes at least 1; weights packed.
PYRECON_PER_ISA(template <class T>
                void rdn(const T* image, const T* weights, T* out, const RdnShape& shape, int threads);)
