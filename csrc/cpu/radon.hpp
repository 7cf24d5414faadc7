// Line integrals by linear interpolation, and their transpose (pyrecon/ops/_radon.py has the law).
#pragma once

#include "cpu/dispatch.hpp"

namespace pyrecon {

// Images (batch, height, width), sinograms (batch, views, detectors). Rays (views, 3, detectors): start, slope and
// weight; along (views, detectors): 1 for rays that go from row to row, 0 from column to column.
struct RadonShape {
  int64_t batch, height, width, views, detectors;
};

}  // namespace pyrecon

PYRECON_PER_ISA(

    template <class T>
    void radon(const T* image, const double* rays, const uint8_t* along, T* sino, const RadonShape& shape, int threads);

    template <class T> void radon_adjoint(const T* sino, const double* rays, const uint8_t* along, T* image,
                                          const RadonShape& shape, int threads);

)
