// Multi-coil MRI: products with coil maps around a Fourier transform. Complex numbers are interleaved pairs of T.
#pragma once

#include "cpu/dispatch.hpp"

namespace pyrecon {

// Sizes of one call: image (batch, rows, cols), coil data (batch, coils, rows, cols). The batches of maps and mask
// divide that: so many consecutive samples share one. The mask is constant along the axes where its size is 1.
struct SenseShape {
  int64_t batch, coils, rows, cols;
  int64_t maps_batch;
  int64_t mask_batch, mask_rows, mask_cols;
};

}  // namespace pyrecon

PYRECON_PER_ISA(

    // Rows and cols must be lengths that sense_plan accepts: no prime factor above 257. `mask` is (mask_batch,
    // mask_rows, mask_cols); plans are those of rows and cols.
    //
    // Bytes of the plan for length n, 0 if there is none; with memory (64-byte aligned) it is written there.
    template <class T> int64_t sense_plan(int64_t n, void* memory);

    // Numbers of T that `workspace` must hold, 64-byte aligned.
    template <class T> int64_t sense_workspace(const SenseShape& shape, int threads);

    // out = mask * F(maps * image)
    template <class T> void sense_forward(const T* image, const T* maps, const T* mask, T* out, const void* row_plan,
                                          const void* col_plan, T* workspace, const SenseShape& shape, int threads);

    // out = sum_c conj(maps) F^H(mask * kspace)
    template <class T> void sense_adjoint(const T* kspace, const T* maps, const T* mask, T* out, const void* row_plan,
                                          const void* col_plan, T* workspace, const SenseShape& shape, int threads);

    // out = conj(image) F^H(mask * kspace)
    template <class T>
    void sense_maps_adjoint(const T* kspace, const T* image, const T* mask, T* out, const void* row_plan,
                            const void* col_plan, T* workspace, const SenseShape& shape, int threads);

    // out = sum_c conj(maps) F^H(mask^2 F(maps * image)), transforming only the axes along which the mask varies.
    template <class T> void sense_normal(const T* image, const T* maps, const T* mask, T* out, const void* row_plan,
                                         const void* col_plan, T* workspace, const SenseShape& shape, int threads);

)
