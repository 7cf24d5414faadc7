// What every CUDA binding needs besides csrc/bind.hpp. Streams come as the integers of torch's `cuda_stream`.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "bind.hpp"

namespace pyrecon::cuda {

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

void register_kaczmarz(pybind11::module_& m);

}  // namespace pyrecon::cuda
