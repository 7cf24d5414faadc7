#pragma once

#include <cstdint>

#include "cpu/dispatch.hpp"

namespace pyrecon {

// Data (batch, echoes, voxels), complex numbers as pairs. Spacing, R1 and B1 move on by so many numbers from sample to
// sample, R1 and B1 from voxel to voxel where they say so. Bounds of R2 and of B1.
struct EpgShape {
  int64_t batch, echoes, voxels;
  bool complex;
  int64_t spacing_step, r1_step;
  bool r1_per_voxel;
  int64_t b1_step;
  bool b1_per_voxel;
  double low, high, b1_low, b1_high;
};

}  // namespace pyrecon

// `grid` holds 16 rates, then 8 values of B1. b1, prior and weight may be null.
PYRECON_PER_ISA(template <class T>
                void fit_epg(const T* data, const double* spacing, const double* angles, const double* r1,
                             const double* b1, const T* prior, const T* weight, const double* grid, T* value,
                             int8_t* status, int32_t* count, T* residual, const EpgShape& shape, double tol,
                             int max_iter, int threads);
                template <class T>
                void fit_epg_backward(const T* grad, const T* value, const T* data, const double* spacing,
                                      const double* angles, const double* r1, const double* b1, const T* prior,
                                      const T* weight, T* grad_data, T* u, const EpgShape& shape, int threads);)
