#include "bind.hpp"
#include "cpu/deq_mpi.hpp"

namespace pyrecon {
namespace {

using Address = std::uintptr_t;
using Size = std::int64_t;

template <class T>
void deq_mpi(Address matrix, Address inverse, Address start, Address y, Address radius, Address network,
             Address learned, Address places, Address state, Address report, Size batch, Size rows, Size height,
             Size width, Size features, Size growth, Size blocks, Size layers, int data, Size points,
             Size learned_width, Size learned_layers, Size kernel, Size steps, Size memory, double penalty,
             double tolerance, double ridge, int threads) {
  const DeqShape shape{{batch, height, width, features, growth, blocks, layers},
                       {batch, rows / 2, points, learned_width, learned_layers, kernel},
                       rows,
                       static_cast<DataStep>(data),
                       steps,
                       memory,
                       penalty,
                       tolerance};
  PYRECON_SELECT(deq_mpi<T>)
  (ptr<const T>(matrix), ptr<const T>(inverse), ptr<const T>(start), ptr<const T>(y), ptr<const T>(radius),
   ptr<const T>(network), ptr<const T>(learned), ptr<const int64_t>(places), ptr<T>(state), ptr<T>(report), shape,
   AndersonOptions{1.0, ridge, false, 0.0}, threads);
}

}  // namespace

void register_deq_mpi(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("deq_mpi_f32", &deq_mpi<float>, release_gil());
  m.def("deq_mpi_f64", &deq_mpi<double>, release_gil());
}

}  // namespace pyrecon
