#include "bind.hpp"
#include "cpu/sense.hpp"

namespace pyrecon {
namespace {

using Address = std::uintptr_t;

// Three inputs, the output, the two plans and the workspace, then the sizes.
#define PYRECON_BIND_OPERATOR(name)                                                                                 \
  template <class T>                                                                                                \
  void name(Address a, Address b, Address mask, Address out, Address row_plan, Address col_plan, Address workspace, \
            std::int64_t batch, std::int64_t coils, std::int64_t rows, std::int64_t cols, std::int64_t maps_batch,  \
            std::int64_t mask_batch, std::int64_t mask_rows, std::int64_t mask_cols, int threads) {                 \
    const SenseShape shape{batch, coils, rows, cols, maps_batch, mask_batch, mask_rows, mask_cols};                 \
    PYRECON_SELECT(name<T>)                                                                                         \
    (ptr<const T>(a), ptr<const T>(b), ptr<const T>(mask), ptr<T>(out), ptr<const void>(row_plan),                  \
     ptr<const void>(col_plan), ptr<T>(workspace), shape, threads);                                                 \
  }
PYRECON_BIND_OPERATOR(sense_forward)
PYRECON_BIND_OPERATOR(sense_adjoint)
PYRECON_BIND_OPERATOR(sense_maps_adjoint)
PYRECON_BIND_OPERATOR(sense_normal)

template <class T>
std::int64_t sense_plan(std::int64_t n, Address memory) {
  return PYRECON_SELECT(sense_plan<T>)(n, ptr<void>(memory));
}

template <class T>
std::int64_t sense_workspace(std::int64_t batch, std::int64_t coils, std::int64_t rows, std::int64_t cols,
                             std::int64_t maps_batch, std::int64_t mask_batch, std::int64_t mask_rows,
                             std::int64_t mask_cols, int threads) {
  const SenseShape shape{batch, coils, rows, cols, maps_batch, mask_batch, mask_rows, mask_cols};
  return PYRECON_SELECT(sense_workspace<T>)(shape, threads);
}

}  // namespace

void register_sense(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("sense_plan_f32", &sense_plan<float>);
  m.def("sense_plan_f64", &sense_plan<double>);
  m.def("sense_workspace_f32", &sense_workspace<float>);
  m.def("sense_workspace_f64", &sense_workspace<double>);
  m.def("sense_forward_f32", &sense_forward<float>, release_gil());
  m.def("sense_forward_f64", &sense_forward<double>, release_gil());
  m.def("sense_adjoint_f32", &sense_adjoint<float>, release_gil());
  m.def("sense_adjoint_f64", &sense_adjoint<double>, release_gil());
  m.def("sense_maps_adjoint_f32", &sense_maps_adjoint<float>, release_gil());
  m.def("sense_maps_adjoint_f64", &sense_maps_adjoint<double>, release_gil());
  m.def("sense_normal_f32", &sense_normal<float>, release_gil());
  m.def("sense_normal_f64", &sense_normal<double>, release_gil());
}

}  // namespace pyrecon
