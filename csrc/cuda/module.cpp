// Table of contents of pyrecon._cuda.
#include "cuda/cuda_bind.hpp"

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of pyrecon. Takes device addresses: call the checked functions in pyrecon.ops instead.";
  m.attr("runtime_version") = CUDART_VERSION;

  pyrecon::cuda::register_kaczmarz(m);
}
