#include "bind.hpp"
#include "cpu/langevin.hpp"

namespace pyrecon {
namespace {

template <class T>
void langevin_step(std::uintptr_t x, std::uintptr_t grad, std::uintptr_t step, std::uintptr_t noise_std,
                   std::uintptr_t mean, std::uintptr_t m2, std::uintptr_t count, std::uintptr_t clock,
                   std::uintptr_t out, std::uintptr_t new_mean, std::uintptr_t new_m2, std::int64_t rows,
                   std::int64_t n, std::uint64_t seed, std::uint64_t counter, std::uint64_t first, bool complex,
                   bool nonneg, int threads) {
  PYRECON_SELECT(langevin_step<T>)
  (LangevinStep<T>{ptr<const T>(x), ptr<const T>(grad), ptr<const T>(step), ptr<const T>(noise_std), ptr<const T>(mean),
                   ptr<const T>(m2), ptr<const std::int64_t>(count), ptr<const std::int64_t>(clock), ptr<T>(out),
                   ptr<T>(new_mean), ptr<T>(new_m2), rows, n, seed, counter, first, complex, nonneg, threads});
}

}  // namespace

void register_langevin(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("langevin_step_f32", &langevin_step<float>, release_gil());
  m.def("langevin_step_f64", &langevin_step<double>, release_gil());
}

}  // namespace pyrecon
