#include "bind.hpp"
#include "cpu/consistency.hpp"

namespace pyrecon {
namespace {

template <class T>
void project_l2_ball(std::uintptr_t v, std::uintptr_t center, std::uintptr_t radius, std::uintptr_t out,
                     std::int64_t batch, std::int64_t n, int threads) {
  PYRECON_SELECT(project_l2_ball<T>)
  (ptr<const T>(v), ptr<const T>(center), ptr<const T>(radius), ptr<T>(out), batch, n, threads);
}

}  // namespace

void register_consistency(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("project_l2_ball_f32", &project_l2_ball<float>, release_gil());
  m.def("project_l2_ball_f64", &project_l2_ball<double>, release_gil());
}

}  // namespace pyrecon
