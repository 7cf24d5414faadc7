// Discrete sine transform and the prox of smooth maps, see pyrecon/ops/_sine.py for the laws.
#pragma once

#include <cstdint>

#include "cpu/dispatch.hpp"

namespace pyrecon {

struct SineShape {
  int64_t planes, rows, cols, field;  // field: reals of a number, 1 or 2
};

}  // namespace pyrecon

// A plan is made for a number of points n = size + 1; null leaves an axis alone. sine_plan returns its bytes and writes
// where there is memory. sine_cost is what a transform costs, in some unit.
PYRECON_PER_ISA(template <class T> int64_t sine_plan(int64_t n, void* memory); double sine_cost(int64_t n);

                template <class T> void dst1(const T* x, T* out, const void* row_plan, const void* col_plan,
                                             const SineShape& shape, int threads);

                // Tridiagonal systems along the rows' or the columns' axis; with a plan, after a transform along the
                // other one. Plane p has weight[p * weights / planes].
                template <class T>
                void prox_smooth_maps(const T* maps, const T* weight, T* out, const void* plan, const SineShape& shape,
                                      int64_t weights, bool along_rows, int threads);)
