#include "bind.hpp"
#include "cpu/rdn.hpp"

namespace pyrecon {
namespace {

template <class T>
void rdn(std::uintptr_t image, std::uintptr_t weights, std::uintptr_t out, std::int64_t batch, std::int64_t rows,
         std::int64_t cols, std::int64_t features, std::int64_t growth, std::int64_t blocks, std::int64_t layers,
         int threads) {
  PYRECON_SELECT(rdn<T>)
  (ptr<const T>(image), ptr<const T>(weights), ptr<T>(out),
   RdnShape{batch, rows, cols, features, growth, blocks, layers}, threads);
}

}  // namespace

void register_rdn(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("rdn_f32", &rdn<float>, release_gil());
  m.def("rdn_f64", &rdn<double>, release_gil());
}

}  // namespace pyrecon
