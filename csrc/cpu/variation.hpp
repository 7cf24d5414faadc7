// Proximal maps of sparsity: total variation through its dual (pyrecon/ops/_variation.py derives it), soft threshold.
#pragma once

#include "cpu/dispatch.hpp"

namespace pyrecon {

// Images (batch, height, width, channels), channels 2 for complex numbers; duals (batch, 2, height, width, channels).
struct TvShape {
  int64_t batch, channels, height, width;
};

struct TvOptions {
  const double* schedule;  // 4 coefficients per iteration
  int64_t iterations;
  double tol;
  bool isotropic, nonneg;
  int threads;
};

}  // namespace pyrecon

PYRECON_PER_ISA(

    // u = argmin 1/2 |u - x|^2 + weight TV(u), its dual, and the iterations each sample took. `first_dual` may be null.
    template <class T> void tv_prox(const T* x, const T* weight, const T* first_dual, T* u, T* dual, int32_t* count,
                                    T* scratch, const TvShape& shape, const TvOptions& options);

    // How many numbers of `number_bytes` bytes `scratch` must hold.
    int64_t tv_prox_scratch(const TvShape& shape, int threads, int64_t number_bytes);

    // out = x shrunk towards zero by threshold[row * t_row + column * t_column]; x (rows, n, channels).
    template <class T> void soft_threshold(const T* x, const T* threshold, T* out, int64_t rows, int64_t n,
                                           int64_t channels, int64_t t_row, int64_t t_column, bool nonneg, int threads);

)
