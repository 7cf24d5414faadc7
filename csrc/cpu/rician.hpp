#pragma once

#include <cstdint>

#include "cpu/fit.hpp"

// `value` holds the start of fit_rician, which overwrites it: the least-squares fit to what rician_cleared makes of the
// data. bessel_ratios, A, z A' and log I0(z) - z of n numbers, is for tests.
PYRECON_PER_ISA(template <class T> void rician_cleared(const T* data, const T* noise, T* cleared, int64_t batch,
                                                       int64_t images, int64_t voxels, int threads);
                template <class T>
                void fit_rician(const T* data, const T* curves, const T* prior, const T* weight, const T* noise,
                                T* value, int8_t* status, int32_t* count, T* residual, const FitShape& shape,
                                double low, double high, double tol, int max_iter, int threads);
                template <class T>
                void fit_rician_backward(const T* grad, const T* value, const T* data, const T* curves, const T* prior,
                                         const T* weight, const T* noise, T* grad_data, T* grad_noise, T* u,
                                         const FitShape& shape, double low, double high, int threads);
                template <class T> void bessel_ratios(const T* z, T* ratio, T* slope, T* log, int64_t n);)
