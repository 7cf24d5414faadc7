#include "bind.hpp"
#include "cpu/joint.hpp"

namespace pyrecon {
namespace {

using Address = std::uintptr_t;

template <class T>
void joint_coils(Address maps, Address previous, Address inertia, Address image, Address extrapolated, Address out,
                 std::int64_t batch, std::int64_t coils, std::int64_t pixels, int threads) {
  PYRECON_SELECT(joint_coils<T>)
  (JointCoils<T>{ptr<const T>(maps), ptr<const T>(previous), ptr<const T>(inertia), ptr<const T>(image),
                 ptr<T>(extrapolated), ptr<T>(out), batch, coils, pixels, threads});
}

template <class T>
void joint_step(Address maps, Address response, Address data, Address image, Address step, Address out, Address along,
                std::int64_t batch, std::int64_t coils, std::int64_t pixels, int threads) {
  PYRECON_SELECT(joint_step<T>)
  (JointStep<T>{ptr<const T>(maps), ptr<const T>(response), ptr<const T>(data), ptr<const T>(image), ptr<const T>(step),
                ptr<T>(out), ptr<T>(along), batch, coils, pixels, threads});
}

template <class T>
void joint_test(Address proposal, Address maps, Address moved, Address step, Address image, Address along, Address data,
                Address unit, Address combined, Address sums, double bound, std::int64_t batch, std::int64_t coils,
                std::int64_t pixels, int threads) {
  PYRECON_SELECT(joint_test<T>)
  (JointTest<T>{ptr<const T>(proposal), ptr<const T>(maps), ptr<const T>(moved), ptr<const T>(step),
                ptr<const T>(image), ptr<const T>(along), ptr<const T>(data), ptr<T>(unit), ptr<T>(combined),
                ptr<T>(sums), bound, batch, coils, pixels, threads});
}

}  // namespace

void register_joint(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("joint_coils_f32", &joint_coils<float>, release_gil());
  m.def("joint_coils_f64", &joint_coils<double>, release_gil());
  m.def("joint_step_f32", &joint_step<float>, release_gil());
  m.def("joint_step_f64", &joint_step<double>, release_gil());
  m.def("joint_test_f32", &joint_test<float>, release_gil());
  m.def("joint_test_f64", &joint_test<double>, release_gil());
}

}  // namespace pyrecon
