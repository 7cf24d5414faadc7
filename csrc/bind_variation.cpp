#include "bind.hpp"
#include "cpu/variation.hpp"

namespace pyrecon {
namespace {

template <class T>
void tv_prox(std::uintptr_t x, std::uintptr_t weight, std::uintptr_t first_dual, std::uintptr_t u, std::uintptr_t dual,
             std::uintptr_t count, std::uintptr_t scratch, std::uintptr_t schedule, std::int64_t batch,
             std::int64_t channels, std::int64_t height, std::int64_t width, std::int64_t iterations, double tol,
             bool isotropic, bool nonneg, int threads) {
  PYRECON_SELECT(tv_prox<T>)
  (ptr<const T>(x), ptr<const T>(weight), ptr<const T>(first_dual), ptr<T>(u), ptr<T>(dual), ptr<std::int32_t>(count),
   ptr<T>(scratch), TvShape{batch, channels, height, width},
   TvOptions{ptr<const double>(schedule), iterations, tol, isotropic, nonneg, threads});
}

std::int64_t tv_prox_scratch(std::int64_t batch, std::int64_t channels, std::int64_t height, std::int64_t width,
                             int threads, std::int64_t number_bytes) {
  return PYRECON_SELECT(tv_prox_scratch)(TvShape{batch, channels, height, width}, threads, number_bytes);
}

template <class T>
void soft_threshold(std::uintptr_t x, std::uintptr_t threshold, std::uintptr_t out, std::int64_t rows, std::int64_t n,
                    std::int64_t channels, std::int64_t t_row, std::int64_t t_column, bool nonneg, int threads) {
  PYRECON_SELECT(soft_threshold<T>)
  (ptr<const T>(x), ptr<const T>(threshold), ptr<T>(out), rows, n, channels, t_row, t_column, nonneg, threads);
}

}  // namespace

void register_variation(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("tv_prox_f32", &tv_prox<float>, release_gil());
  m.def("tv_prox_f64", &tv_prox<double>, release_gil());
  m.def("tv_prox_scratch", &tv_prox_scratch);
  m.def("soft_threshold_f32", &soft_threshold<float>, release_gil());
  m.def("soft_threshold_f64", &soft_threshold<double>, release_gil());
}

}  // namespace pyrecon
