#include "bind.hpp"
#include "cpu/sine.hpp"

namespace pyrecon {
namespace {

template <class T>
std::int64_t sine_plan(std::int64_t n, std::uintptr_t memory) {
  return PYRECON_SELECT(sine_plan<T>)(n, ptr<void>(memory));
}

double sine_cost(std::int64_t n) { return PYRECON_SELECT(sine_cost)(n); }

template <class T>
void dst1(std::uintptr_t x, std::uintptr_t out, std::uintptr_t row_plan, std::uintptr_t col_plan, std::int64_t planes,
          std::int64_t rows, std::int64_t cols, std::int64_t field, int threads) {
  PYRECON_SELECT(dst1<T>)
  (ptr<const T>(x), ptr<T>(out), ptr<const void>(row_plan), ptr<const void>(col_plan),
   SineShape{planes, rows, cols, field}, threads);
}

template <class T>
void prox_smooth_maps(std::uintptr_t maps, std::uintptr_t weight, std::uintptr_t out, std::uintptr_t plan,
                      std::int64_t planes, std::int64_t rows, std::int64_t cols, std::int64_t field,
                      std::int64_t weights, bool along_rows, int threads) {
  PYRECON_SELECT(prox_smooth_maps<T>)
  (ptr<const T>(maps), ptr<const T>(weight), ptr<T>(out), ptr<const void>(plan), SineShape{planes, rows, cols, field},
   weights, along_rows, threads);
}

}  // namespace

void register_sine(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("sine_plan_f32", &sine_plan<float>);
  m.def("sine_plan_f64", &sine_plan<double>);
  m.def("sine_cost", &sine_cost);
  m.def("dst1_f32", &dst1<float>, release_gil());
  m.def("dst1_f64", &dst1<double>, release_gil());
  m.def("prox_smooth_maps_f32", &prox_smooth_maps<float>, release_gil());
  m.def("prox_smooth_maps_f64", &prox_smooth_maps<double>, release_gil());
}

}  // namespace pyrecon
