#pragma once

#include <cstdint>

#include "cpu/dispatch.hpp"

namespace pyrecon {

// Data (batch, images, voxels), complex numbers as pairs. The table (1 or batch, 5, images, 1 or voxels) moves on by
// per_sample numbers from sample to sample.
struct FitShape {
  int64_t batch, images, voxels;
  bool complex;
  int64_t per_sample;
  bool per_voxel;
  int linear;
  bool polarity;
};

}  // namespace pyrecon

PYRECON_PER_ISA(template <class T>
                void fit_voxels(const T* data, const T* curves, const T* prior, const T* weight, const double* grid,
                                T* value, int8_t* status, int32_t* count, T* residual, const FitShape& shape,
                                double tol, int max_iter, int threads);
                template <class T>
                void fit_voxels_backward(const T* grad, const T* value, const T* data, const T* curves, const T* prior,
                                         const T* weight, T* grad_data, T* u, const FitShape& shape, double low,
                                         double high, int threads);)
