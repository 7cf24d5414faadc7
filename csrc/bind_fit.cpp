#include "bind.hpp"
#include "cpu/fit.hpp"

namespace pyrecon {
namespace {

using Address = std::uintptr_t;

template <class T>
void fit_voxels(Address data, Address curves, Address prior, Address weight, Address grid, Address value,
                Address status, Address count, Address residual, std::int64_t batch, std::int64_t images,
                std::int64_t voxels, bool complex, std::int64_t per_sample, bool per_voxel, int linear, bool polarity,
                double tol, int max_iter, int threads) {
  PYRECON_SELECT(fit_voxels<T>)
  (ptr<const T>(data), ptr<const T>(curves), ptr<const T>(prior), ptr<const T>(weight), ptr<const double>(grid),
   ptr<T>(value), ptr<std::int8_t>(status), ptr<std::int32_t>(count), ptr<T>(residual),
   FitShape{batch, images, voxels, complex, per_sample, per_voxel, linear, polarity}, tol, max_iter, threads);
}

template <class T>
void fit_voxels_backward(Address grad, Address value, Address data, Address curves, Address prior, Address weight,
                         Address grad_data, Address u, std::int64_t batch, std::int64_t images, std::int64_t voxels,
                         bool complex, std::int64_t per_sample, bool per_voxel, int linear, bool polarity, double low,
                         double high, int threads) {
  PYRECON_SELECT(fit_voxels_backward<T>)
  (ptr<const T>(grad), ptr<const T>(value), ptr<const T>(data), ptr<const T>(curves), ptr<const T>(prior),
   ptr<const T>(weight), ptr<T>(grad_data), ptr<T>(u),
   FitShape{batch, images, voxels, complex, per_sample, per_voxel, linear, polarity}, low, high, threads);
}

}  // namespace

void register_fit(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("fit_voxels_f32", &fit_voxels<float>, release_gil());
  m.def("fit_voxels_f64", &fit_voxels<double>, release_gil());
  m.def("fit_voxels_backward_f32", &fit_voxels_backward<float>, release_gil());
  m.def("fit_voxels_backward_f64", &fit_voxels_backward<double>, release_gil());
}

}  // namespace pyrecon
