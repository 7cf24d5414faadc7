#include "bind.hpp"
#include "cpu/rdn.hpp"

namespace pyrecon {
namespace {

template <class T>
void rdn(std::uintptr_t image, std::uintptr_t weights, std::uintptr_t out, std::uintptr_t maps, std::int64_t batch,
         std::int64_t rows, std::int64_t cols, std::int64_t features, std::int64_t growth, std::int64_t blocks,
         std::int64_t layers, int threads) {
  PYRECON_SELECT(rdn<T>)
  (ptr<const T>(image), ptr<const T>(weights), ptr<T>(out), ptr<T>(maps),
   RdnShape{batch, rows, cols, features, growth, blocks, layers}, threads);
}

template <class T>
void rdn_backward(std::uintptr_t grad, std::uintptr_t maps, std::uintptr_t weights, std::uintptr_t grad_image,
                  std::uintptr_t grad_weights, std::int64_t batch, std::int64_t rows, std::int64_t cols,
                  std::int64_t features, std::int64_t growth, std::int64_t blocks, std::int64_t layers, int threads) {
  PYRECON_SELECT(rdn_backward<T>)
  (ptr<const T>(grad), ptr<T>(maps), ptr<const T>(weights), ptr<T>(grad_image), ptr<T>(grad_weights),
   RdnShape{batch, rows, cols, features, growth, blocks, layers}, threads);
}

}  // namespace

void register_rdn(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("rdn_f32", &rdn<float>, release_gil());
  m.def("rdn_f64", &rdn<double>, release_gil());
  m.def("rdn_backward_f32", &rdn_backward<float>, release_gil());
  m.def("rdn_backward_f64", &rdn_backward<double>, release_gil());
}

}  // namespace pyrecon
