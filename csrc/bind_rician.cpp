#include "bind.hpp"
#include "cpu/rician.hpp"

namespace pyrecon {
namespace {

using Address = std::uintptr_t;

template <class T>
void rician_cleared(Address data, Address noise, Address cleared, std::int64_t batch, std::int64_t images,
                    std::int64_t voxels, int threads) {
  PYRECON_SELECT(rician_cleared<T>)
  (ptr<const T>(data), ptr<const T>(noise), ptr<T>(cleared), batch, images, voxels, threads);
}

template <class T>
void fit_rician(Address data, Address curves, Address prior, Address weight, Address noise, Address value,
                Address status, Address count, Address residual, std::int64_t batch, std::int64_t images,
                std::int64_t voxels, bool complex, std::int64_t per_sample, bool per_voxel, int linear, double low,
                double high, double tol, int max_iter, int threads) {
  PYRECON_SELECT(fit_rician<T>)
  (ptr<const T>(data), ptr<const T>(curves), ptr<const T>(prior), ptr<const T>(weight), ptr<const T>(noise),
   ptr<T>(value), ptr<std::int8_t>(status), ptr<std::int32_t>(count), ptr<T>(residual),
   FitShape{batch, images, voxels, complex, per_sample, per_voxel, linear, false}, low, high, tol, max_iter, threads);
}

template <class T>
void fit_rician_backward(Address grad, Address value, Address data, Address curves, Address prior, Address weight,
                         Address noise, Address grad_data, Address grad_noise, Address u, std::int64_t batch,
                         std::int64_t images, std::int64_t voxels, bool complex, std::int64_t per_sample,
                         bool per_voxel, int linear, double low, double high, int threads) {
  PYRECON_SELECT(fit_rician_backward<T>)
  (ptr<const T>(grad), ptr<const T>(value), ptr<const T>(data), ptr<const T>(curves), ptr<const T>(prior),
   ptr<const T>(weight), ptr<const T>(noise), ptr<T>(grad_data), ptr<T>(grad_noise), ptr<T>(u),
   FitShape{batch, images, voxels, complex, per_sample, per_voxel, linear, false}, low, high, threads);
}

template <class T>
void bessel_ratios(Address z, Address ratio, Address slope, Address log, std::int64_t n) {
  PYRECON_SELECT(bessel_ratios<T>)(ptr<const T>(z), ptr<T>(ratio), ptr<T>(slope), ptr<T>(log), n);
}

}  // namespace

void register_rician(pybind11::module_& m) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("rician_cleared_f32", &rician_cleared<float>, release_gil());
  m.def("rician_cleared_f64", &rician_cleared<double>, release_gil());
  m.def("fit_rician_f32", &fit_rician<float>, release_gil());
  m.def("fit_rician_f64", &fit_rician<double>, release_gil());
  m.def("fit_rician_backward_f32", &fit_rician_backward<float>, release_gil());
  m.def("fit_rician_backward_f64", &fit_rician_backward<double>, release_gil());
  m.def("bessel_ratios_f32", &bessel_ratios<float>, release_gil());
  m.def("bessel_ratios_f64", &bessel_ratios<double>, release_gil());
}

}  // namespace pyrecon
