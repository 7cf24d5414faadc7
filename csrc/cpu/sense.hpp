// Multi-coil MRI: products with coil maps around a Fourier transform. Complex numbers are interleaved pairs of T.
#pragma once

#include "cpu/dispatch.hpp"

namespace pyrecon {

// Sizes of one call: image (batch, rows, cols), coil data (batch, coils, rows, cols). Maps and mask are shared by the
// batch where their batch is 1; the mask is constant along the axes where its size is 1.
struct SenseShape {
  int64_t batch, coils, rows, cols;
  int64_t maps_batch;
  int64_t mask_batch, mask_rows, mask_cols;
};

}  // namespace pyrecon

PYRECON_PER_ISA(

    // out[b, c, i, j] = image[b, i, j] * maps[b, c, i, j] * p[i] * q[j]; null phases count as 1.
    template <class T> void coil_expand(const T* image, const T* maps, const T* p, const T* q, T* out,
                                        const SenseShape& shape, int threads);

    // out[b, i, j] = sum_c coils[b, c, i, j] * conj(maps[b, c, i, j] * p[i] * q[j])
    template <class T> void coil_combine(const T* coils, const T* maps, const T* p, const T* q, T* out,
                                         const SenseShape& shape, int threads);

    // out[b, c, i, j] = coils[b, c, i, j] * conj(image[b, i, j] * p[i] * q[j])
    template <class T> void coil_correlate(const T* coils, const T* image, const T* p, const T* q, T* out,
                                           const SenseShape& shape, int threads);

    // out[b, c, i, j] = coils[b, c, i, j] * mask[b, i, j] * p[i] * q[j]; out may be coils.
    template <class T> void coil_weight(const T* coils, const T* mask, const T* p, const T* q, T* out,
                                        const SenseShape& shape, int threads);

)
