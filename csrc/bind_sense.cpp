#include "bind.hpp"
#include "cpu/sense.hpp"

namespace pyrecon {
namespace {

using Address = std::uintptr_t;

// Every kernel here takes two inputs, two phase vectors (0: none) and an output, then the sizes of a SenseShape.
#define PYRECON_BIND_COILS(name)                                                                             \
  template <class T>                                                                                         \
  void name(Address a, Address b, Address p, Address q, Address out, std::int64_t batch, std::int64_t coils, \
            std::int64_t rows, std::int64_t cols, std::int64_t maps_batch, std::int64_t mask_batch,          \
            std::int64_t mask_rows, std::int64_t mask_cols, int threads) {                                   \
    const SenseShape shape{batch, coils, rows, cols, maps_batch, mask_batch, mask_rows, mask_cols};          \
    PYRECON_SELECT(name<T>)                                                                                  \
    (ptr<const T>(a), ptr<const T>(b), ptr<const T>(p), ptr<const T>(q), ptr<T>(out), shape, threads);       \
  }
PYRECON_BIND_COILS(coil_expand)
PYRECON_BIND_COILS(coil_combine)
PYRECON_BIND_COILS(coil_correlate)
PYRECON_BIND_COILS(coil_weight)

}  // namespace

void register_sense(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("coil_expand_f32", &coil_expand<float>, release_gil());
  m.def("coil_expand_f64", &coil_expand<double>, release_gil());
  m.def("coil_combine_f32", &coil_combine<float>, release_gil());
  m.def("coil_combine_f64", &coil_combine<double>, release_gil());
  m.def("coil_correlate_f32", &coil_correlate<float>, release_gil());
  m.def("coil_correlate_f64", &coil_correlate<double>, release_gil());
  m.def("coil_weight_f32", &coil_weight<float>, release_gil());
  m.def("coil_weight_f64", &coil_weight<double>, release_gil());
}

}  // namespace pyrecon
