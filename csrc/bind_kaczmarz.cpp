#include "bind.hpp"
#include "cpu/kaczmarz.hpp"

namespace pyrecon {
namespace {

// The workspace is sized by the level that will run, so both questions are asked through one object.
template <class T>
Kaczmarz<T> problem(std::int64_t batch, std::int64_t rows, std::int64_t columns, std::int64_t steps,
                    std::int64_t sweeps, bool order_per_sweep, bool nonneg, int threads) {
  Kaczmarz<T> p{};
  p.batch = batch, p.rows = rows, p.columns = columns, p.steps = steps, p.sweeps = sweeps;
  p.order_per_sweep = order_per_sweep, p.nonneg = nonneg, p.threads = threads;
  return p;
}

template <class T, bool Complex>
std::int64_t workspace(std::int64_t batch, std::int64_t rows, std::int64_t columns, std::int64_t steps,
                       std::int64_t sweeps, bool order_per_sweep, bool nonneg, int threads) {
  return PYRECON_SELECT(kaczmarz_workspace<T, Complex>)(
      problem<T>(batch, rows, columns, steps, sweeps, order_per_sweep, nonneg, threads));
}

template <class T, bool Complex>
void sweep(std::uintptr_t A, std::uintptr_t y, std::uintptr_t x0, std::uintptr_t dual0, std::uintptr_t weight,
           std::uintptr_t order, std::uintptr_t x, std::uintptr_t dual, std::uintptr_t multipliers,
           std::uintptr_t active, std::uintptr_t workspace, std::int64_t batch, std::int64_t rows, std::int64_t columns,
           std::int64_t steps, std::int64_t sweeps, bool order_per_sweep, bool nonneg, int threads) {
  Kaczmarz<T> p = problem<T>(batch, rows, columns, steps, sweeps, order_per_sweep, nonneg, threads);
  p.A = ptr<const T>(A), p.y = ptr<const T>(y), p.x0 = ptr<const T>(x0), p.dual0 = ptr<const T>(dual0);
  p.weight = ptr<const T>(weight), p.order = ptr<const std::int64_t>(order);
  p.x = ptr<T>(x), p.dual = ptr<T>(dual), p.multipliers = ptr<T>(multipliers), p.active = ptr<T>(active);
  p.workspace = ptr<T>(workspace);
  PYRECON_SELECT(kaczmarz<T, Complex>)(p);
}

}  // namespace

void register_kaczmarz(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("kaczmarz_f32", &sweep<float, false>, release_gil());
  m.def("kaczmarz_f64", &sweep<double, false>, release_gil());
  m.def("kaczmarz_c64", &sweep<float, true>, release_gil());
  m.def("kaczmarz_c128", &sweep<double, true>, release_gil());
  m.def("kaczmarz_workspace_f32", &workspace<float, false>);
  m.def("kaczmarz_workspace_f64", &workspace<double, false>);
  m.def("kaczmarz_workspace_c64", &workspace<float, true>);
  m.def("kaczmarz_workspace_c128", &workspace<double, true>);
}

}  // namespace pyrecon
