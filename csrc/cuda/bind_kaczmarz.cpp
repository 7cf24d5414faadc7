#include "bind_kaczmarz.hpp"

#include "cuda/cuda_bind.hpp"
#include "cuda/kaczmarz.hpp"

namespace pyrecon::cuda {
namespace {

template <class T, bool Complex>
std::int64_t workspace(const Sizes& sizes, int device) {
  return kaczmarz_workspace<T, Complex>(kaczmarz_problem<T>(sizes, 0), device);
}

template <class T, bool Complex>
void sweep(const Addresses& addresses, const Sizes& sizes, int device, std::uintptr_t stream) {
  check(kaczmarz<T, Complex>(kaczmarz_problem<T>(sizes, 0, addresses), device, ptr<CUstream_st>(stream)));
}

}  // namespace

void register_kaczmarz(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("kaczmarz_f32", &sweep<float, false>, release_gil());
  m.def("kaczmarz_f64", &sweep<double, false>, release_gil());
  m.def("kaczmarz_c64", &sweep<float, true>, release_gil());
  m.def("kaczmarz_c128", &sweep<double, true>, release_gil());
  m.def("kaczmarz_workspace_f32", &workspace<float, false>);
  m.def("kaczmarz_workspace_f64", &workspace<double, false>);
  m.def("kaczmarz_workspace_c64", &workspace<float, true>);
  m.def("kaczmarz_workspace_c128", &workspace<double, true>);
}

}  // namespace pyrecon::cuda
