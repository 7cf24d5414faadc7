// Pointwise passes of joint image and coil-map estimation; pyrecon/ops/_joint.py defines them.
#pragma once

#include "cpu/dispatch.hpp"

namespace pyrecon {

// Coil data are (batch, coils, pixels) complex, images (batch, pixels) real, scalars (batch,) real. Null where an op
// has no such argument.
template <class T>
struct JointCoils {
  const T *maps, *previous, *inertia, *image;
  T *extrapolated, *out;  // extrapolated may be maps or previous; null: maps are taken as they are
  int64_t batch, coils, pixels;
  int threads;
};

template <class T>
struct JointStep {
  const T *maps, *response, *data, *image, *step;
  T *out, *along;  // out may be response
  int64_t batch, coils, pixels;
  int threads;
};

template <class T>
struct JointTest {
  const T *proposal, *maps, *moved, *step, *image, *along, *data;
  T *unit, *combined;  // unit may be proposal
  T* sums;             // (batch, 3)
  double bound;
  int64_t batch, coils, pixels;
  int threads;
};

}  // namespace pyrecon

PYRECON_PER_ISA(

    // extrapolated = maps + inertia (maps - previous), out = image * extrapolated / |extrapolated|.
    template <class T> void joint_coils(const JointCoils<T>& job);

    // along = Re sum conj(n) (response - data); out = maps - step * the gradient, or without step the gradient.
    template <class T> void joint_step(const JointStep<T>& job);

    // unit = proposal / |proposal|, combined = Re sum conj(unit) data, and the sums of the backtracking inequality.
    template <class T> void joint_test(const JointTest<T>& job);

)
