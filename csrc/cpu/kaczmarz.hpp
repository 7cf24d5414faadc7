// Tikhonov-Kaczmarz sweeps with the multipliers of the rows, batched over right-hand sides.
#pragma once

#include "cpu/dispatch.hpp"
#include "kaczmarz_problem.hpp"

PYRECON_PER_ISA(

    // Elements that `workspace` must hold; reads sizes, order_per_sweep and threads only.
    template <class T, bool Complex> std::int64_t kaczmarz_workspace(const Kaczmarz<T>& p);

    template <class T, bool Complex> void kaczmarz(const Kaczmarz<T>& p);

)
