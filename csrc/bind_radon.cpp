#include "bind.hpp"
#include "cpu/radon.hpp"

namespace pyrecon {
namespace {

template <class T>
void radon(std::uintptr_t image, std::uintptr_t rays, std::uintptr_t along, std::uintptr_t sino, std::int64_t batch,
           std::int64_t height, std::int64_t width, std::int64_t views, std::int64_t detectors, int threads) {
  PYRECON_SELECT(radon<T>)
  (ptr<const T>(image), ptr<const double>(rays), ptr<const std::uint8_t>(along), ptr<T>(sino),
   RadonShape{batch, height, width, views, detectors}, threads);
}

template <class T>
void radon_adjoint(std::uintptr_t sino, std::uintptr_t rays, std::uintptr_t along, std::uintptr_t image,
                   std::int64_t batch, std::int64_t height, std::int64_t width, std::int64_t views,
                   std::int64_t detectors, int threads) {
  PYRECON_SELECT(radon_adjoint<T>)
  (ptr<const T>(sino), ptr<const double>(rays), ptr<const std::uint8_t>(along), ptr<T>(image),
   RadonShape{batch, height, width, views, detectors}, threads);
}

}  // namespace

void register_radon(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("radon_f32", &radon<float>, release_gil());
  m.def("radon_f64", &radon<double>, release_gil());
  m.def("radon_adjoint_f32", &radon_adjoint<float>, release_gil());
  m.def("radon_adjoint_f64", &radon_adjoint<double>, release_gil());
}

}  // namespace pyrecon
