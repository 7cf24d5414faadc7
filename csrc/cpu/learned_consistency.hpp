// A small convolutional network in place of a projection, and its gradient, see pyrecon/ops/_learned_consistency.py for
// the law.
#pragma once

#include <cstdint>

#include "cpu/dispatch.hpp"

namespace pyrecon {

struct LearnedShape {
  int64_t batch, rows;  // rows: of complex numbers, so that v, y and out are (batch, 2 rows)
  int64_t points, width, layers, kernel;
};

}  // namespace pyrecon

// places (rows,): where in the line of points a row lies, if there. layers >= 1, an odd kernel; weights packed.
// grad_y and grad_weights may be null.
PYRECON_PER_ISA(template <class T> void learned_consistency(const T* v, const T* y, const T* radius, const T* weights,
                                                            const int64_t* places, T* out, const LearnedShape& shape,
                                                            bool released, int threads);
                template <class T>
                void learned_consistency_backward(const T* grad, const T* v, const T* y, const T* radius,
                                                  const T* weights, const int64_t* places, T* grad_v, T* grad_y,
                                                  T* grad_radius, T* grad_weights, const LearnedShape& shape,
                                                  bool released, int threads);)
