#include "bind.hpp"
#include "cpu/learned_consistency.hpp"

namespace pyrecon {
namespace {

template <class T>
void learned_consistency(std::uintptr_t v, std::uintptr_t y, std::uintptr_t radius, std::uintptr_t weights,
                         std::uintptr_t places, std::uintptr_t out, std::int64_t batch, std::int64_t rows,
                         std::int64_t points, std::int64_t width, std::int64_t layers, std::int64_t kernel,
                         bool released, int threads) {
  PYRECON_SELECT(learned_consistency<T>)
  (ptr<const T>(v), ptr<const T>(y), ptr<const T>(radius), ptr<const T>(weights), ptr<const int64_t>(places),
   ptr<T>(out), LearnedShape{batch, rows, points, width, layers, kernel}, released, threads);
}

template <class T>
void learned_consistency_backward(std::uintptr_t grad, std::uintptr_t v, std::uintptr_t y, std::uintptr_t radius,
                                  std::uintptr_t weights, std::uintptr_t places, std::uintptr_t grad_v,
                                  std::uintptr_t grad_y, std::uintptr_t grad_radius, std::uintptr_t grad_weights,
                                  std::int64_t batch, std::int64_t rows, std::int64_t points, std::int64_t width,
                                  std::int64_t layers, std::int64_t kernel, bool released, int threads) {
  PYRECON_SELECT(learned_consistency_backward<T>)
  (ptr<const T>(grad), ptr<const T>(v), ptr<const T>(y), ptr<const T>(radius), ptr<const T>(weights),
   ptr<const int64_t>(places), ptr<T>(grad_v), ptr<T>(grad_y), ptr<T>(grad_radius), ptr<T>(grad_weights),
   LearnedShape{batch, rows, points, width, layers, kernel}, released, threads);
}

}  // namespace

void register_learned_consistency(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("learned_consistency_f32", &learned_consistency<float>, release_gil());
  m.def("learned_consistency_f64", &learned_consistency<double>, release_gil());
  m.def("learned_consistency_backward_f32", &learned_consistency_backward<float>, release_gil());
  m.def("learned_consistency_backward_f64", &learned_consistency_backward<double>, release_gil());
}

}  // namespace pyrecon
