// Data consistency of a linear model with an l2-ball: projection, and the fused system-matrix step.
#pragma once

#include "cpu/dispatch.hpp"

namespace pyrecon {

// Which of the matrix (and with it the data) and the image are complex.
enum class Field : int { real = 0, complex = 1, complex_matrix = 2 };

}  // namespace pyrecon

PYRECON_PER_ISA(

    // out[b] = center[b] + (v[b] - center[b]) * min(1, radius[b] / |v[b] - center[b]|), rows of n reals.
    template <class T>
    void project_l2_ball(const T* v, const T* center, const T* radius, T* out, int64_t batch, int64_t n, int threads);

    // z = projection of A x - d onto the ball of `radius` around y, r = Re(A^H (z + d)). A (m, n); x, r (batch, n);
    // d, y, z, ax (batch, m). A x is written to ax if `multiply`,
    // and read from there if not.
    template <class T>
    void sm_consistency(Field field, const T* a, const T* x, const T* d, const T* y, const T* radius, T* ax, T* z, T* r,
                        int64_t m, int64_t n, int64_t batch, bool multiply, int threads);

)
