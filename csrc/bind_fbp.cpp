#include "bind.hpp"
#include "cpu/fbp.hpp"

namespace pyrecon {
namespace {

template <class T>
void fbp(std::uintptr_t sino, std::uintptr_t cameras, bool curved, std::uintptr_t image, std::int64_t batch,
         std::int64_t views, std::int64_t detectors, std::int64_t height, std::int64_t width, int threads) {
  PYRECON_SELECT(fbp<T>)
  (ptr<const T>(sino), ptr<const double>(cameras), curved, ptr<T>(image),
   FbpShape{batch, views, detectors, height, width}, threads);
}

template <class T>
void fbp_backward(std::uintptr_t image, std::uintptr_t cameras, bool curved, std::uintptr_t sino, std::int64_t batch,
                  std::int64_t views, std::int64_t detectors, std::int64_t height, std::int64_t width, int threads) {
  PYRECON_SELECT(fbp_backward<T>)
  (ptr<const T>(image), ptr<const double>(cameras), curved, ptr<T>(sino),
   FbpShape{batch, views, detectors, height, width}, threads);
}

}  // namespace

void register_fbp(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("fbp_f32", &fbp<float>, release_gil());
  m.def("fbp_f64", &fbp<double>, release_gil());
  m.def("fbp_backward_f32", &fbp_backward<float>, release_gil());
  m.def("fbp_backward_f64", &fbp_backward<double>, release_gil());
}

}  // namespace pyrecon
