// Smoothed total variation of images; pyrecon/ops/_charbonnier.py defines it.
#pragma once

#include "cpu/dispatch.hpp"

namespace pyrecon {

template <class T>
struct Charbonnier {
  const T *image, *change;  // (batch, height, width); change: of the curvature alone
  T *sums, *gradient;       // (batch,), (batch, height, width)
  double epsilon;
  int64_t batch, height, width;
  int threads;
};

}  // namespace pyrecon

PYRECON_PER_ISA(

    // sums = the energy, gradient = its gradient.
    template <class T> void charbonnier(const Charbonnier<T>& job);

    // sums = the curvature's quadratic form of the change.
    template <class T> void charbonnier_curvature(const Charbonnier<T>& job);

)
