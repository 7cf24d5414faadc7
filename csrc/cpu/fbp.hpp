// Backprojection of filtered views, and its transpose (pyrecon/ops/_fbp.py has the law).
#pragma once

#include "cpu/dispatch.hpp"

namespace pyrecon {

// Sinograms (batch, views, detectors), images (batch, height, width), cameras (views, 8).
struct FbpShape {
  int64_t batch, views, detectors, height, width;
};

}  // namespace pyrecon

PYRECON_PER_ISA(

    template <class T>
    void fbp(const T* sino, const double* cameras, bool curved, T* image, const FbpShape& shape, int threads);

    template <class T>
    void fbp_backward(const T* image, const double* cameras, bool curved, T* sino, const FbpShape& shape, int threads);

)
