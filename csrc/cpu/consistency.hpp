// Data consistency of a linear model with an l2-ball: projection, and the fused system-matrix step.
#pragma once

#include "cpu/dispatch.hpp"

PYRECON_PER_ISA(

    // out[b] = center[b] + (v[b] - center[b]) * min(1, radius[b] / |v[b] - center[b]|), rows of n reals.
    template <class T>
    void project_l2_ball(const T* v, const T* center, const T* radius, T* out, int64_t batch, int64_t n, int threads);

)
