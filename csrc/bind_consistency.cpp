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

template <class T>
void sm_consistency(int field, std::uintptr_t a, std::uintptr_t x, std::uintptr_t d, std::uintptr_t y,
                    std::uintptr_t radius, std::uintptr_t ax, std::uintptr_t z, std::uintptr_t r, std::int64_t m,
                    std::int64_t n, std::int64_t batch, bool multiply, int threads) {
  PYRECON_SELECT(sm_consistency<T>)
  (static_cast<Field>(field), ptr<const T>(a), ptr<const T>(x), ptr<const T>(d), ptr<const T>(y), ptr<const T>(radius),
   ptr<T>(ax), ptr<T>(z), ptr<T>(r), m, n, batch, multiply, threads);
}

}  // namespace

void register_consistency(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("project_l2_ball_f32", &project_l2_ball<float>, release_gil());
  m.def("project_l2_ball_f64", &project_l2_ball<double>, release_gil());
  m.def("sm_consistency_f32", &sm_consistency<float>, release_gil());
  m.def("sm_consistency_f64", &sm_consistency<double>, release_gil());
}

}  // namespace pyrecon
