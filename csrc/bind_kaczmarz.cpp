#include "bind_kaczmarz.hpp"

#include "cpu/kaczmarz.hpp"

namespace pyrecon {
namespace {

template <class T, bool Complex>
std::int64_t workspace(const Sizes& sizes, int threads) {
  return PYRECON_SELECT(kaczmarz_workspace<T, Complex>)(kaczmarz_problem<T>(sizes, threads));
}

template <class T, bool Complex>
void sweep(const Addresses& addresses, const Sizes& sizes, int threads) {
  PYRECON_SELECT(kaczmarz<T, Complex>)(kaczmarz_problem<T>(sizes, threads, addresses));
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

}  // namespace pyrecon
