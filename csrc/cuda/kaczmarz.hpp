// Tikhonov-Kaczmarz sweeps on a GPU; the law and the block of rows are those of csrc/cpu/kaczmarz.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include "kaczmarz_problem.hpp"

namespace pyrecon::cuda {

// Elements that `workspace` must hold; reads sizes and order_per_sweep only.
template <class T, bool Complex>
std::int64_t kaczmarz_workspace(const Kaczmarz<T>& p, int device);

// Queues the work on `stream` of `device` and returns: no synchronisation, fit for CUDA graphs. A row number outside
// the matrix turns x into NaN. Pointers are device pointers; `threads` is not used.
template <class T, bool Complex>
cudaError_t kaczmarz(const Kaczmarz<T>& p, int device, cudaStream_t stream);

}  // namespace pyrecon::cuda
