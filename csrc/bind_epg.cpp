#include "bind.hpp"
#include "cpu/epg.hpp"

namespace pyrecon {
namespace {

using Address = std::uintptr_t;

template <class T>
void fit_epg(Address data, Address spacing, Address angles, Address r1, Address b1, Address prior, Address weight,
             Address grid, Address value, Address status, Address count, Address residual, std::int64_t batch,
             std::int64_t echoes, std::int64_t voxels, bool complex, std::int64_t spacing_step, std::int64_t r1_step,
             bool r1_per_voxel, std::int64_t b1_step, bool b1_per_voxel, double low, double high, double b1_low,
             double b1_high, double tol, int max_iter, int threads) {
  PYRECON_SELECT(fit_epg<T>)
  (ptr<const T>(data), ptr<const double>(spacing), ptr<const double>(angles), ptr<const double>(r1),
   ptr<const double>(b1), ptr<const T>(prior), ptr<const T>(weight), ptr<const double>(grid), ptr<T>(value),
   ptr<std::int8_t>(status), ptr<std::int32_t>(count), ptr<T>(residual),
   EpgShape{batch, echoes, voxels, complex, spacing_step, r1_step, r1_per_voxel, b1_step, b1_per_voxel, low, high,
            b1_low, b1_high},
   tol, max_iter, threads);
}

template <class T>
void fit_epg_backward(Address grad, Address value, Address data, Address spacing, Address angles, Address r1,
                      Address b1, Address prior, Address weight, Address grad_data, Address u, std::int64_t batch,
                      std::int64_t echoes, std::int64_t voxels, bool complex, std::int64_t spacing_step,
                      std::int64_t r1_step, bool r1_per_voxel, std::int64_t b1_step, bool b1_per_voxel, double low,
                      double high, double b1_low, double b1_high, int threads) {
  PYRECON_SELECT(fit_epg_backward<T>)
  (ptr<const T>(grad), ptr<const T>(value), ptr<const T>(data), ptr<const double>(spacing), ptr<const double>(angles),
   ptr<const double>(r1), ptr<const double>(b1), ptr<const T>(prior), ptr<const T>(weight), ptr<T>(grad_data),
   ptr<T>(u),
   EpgShape{batch, echoes, voxels, complex, spacing_step, r1_step, r1_per_voxel, b1_step, b1_per_voxel, low, high,
            b1_low, b1_high},
   threads);
}

}  // namespace

void register_epg(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("fit_epg_f32", &fit_epg<float>, release_gil());
  m.def("fit_epg_f64", &fit_epg<double>, release_gil());
  m.def("fit_epg_backward_f32", &fit_epg_backward<float>, release_gil());
  m.def("fit_epg_backward_f64", &fit_epg_backward<double>, release_gil());
}

}  // namespace pyrecon
