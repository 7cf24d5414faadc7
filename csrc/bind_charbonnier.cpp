#include "bind.hpp"
#include "cpu/charbonnier.hpp"

namespace pyrecon {
namespace {

using Address = std::uintptr_t;

template <class T>
void charbonnier(Address image, Address sums, Address gradient, double epsilon, std::int64_t batch, std::int64_t height,
                 std::int64_t width, int threads) {
  PYRECON_SELECT(charbonnier<T>)
  (Charbonnier<T>{ptr<const T>(image), nullptr, ptr<T>(sums), ptr<T>(gradient), epsilon, batch, height, width,
                  threads});
}

template <class T>
void charbonnier_curvature(Address image, Address change, Address sums, double epsilon, std::int64_t batch,
                           std::int64_t height, std::int64_t width, int threads) {
  PYRECON_SELECT(charbonnier_curvature<T>)
  (Charbonnier<T>{ptr<const T>(image), ptr<const T>(change), ptr<T>(sums), nullptr, epsilon, batch, height, width,
                  threads});
}

}  // namespace

void register_charbonnier(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("charbonnier_f32", &charbonnier<float>, release_gil());
  m.def("charbonnier_f64", &charbonnier<double>, release_gil());
  m.def("charbonnier_curvature_f32", &charbonnier_curvature<float>, release_gil());
  m.def("charbonnier_curvature_f64", &charbonnier_curvature<double>, release_gil());
}

}  // namespace pyrecon
