// Langevin steps with counter-based noise; pyrecon/ops/_langevin.py defines the stream and the step.
#pragma once

#include "cpu/dispatch.hpp"

namespace pyrecon {

// x, grad, out and mean are `rows` rows of n reals, complex numbers being two each; m2 has one real per number. out may
// be x or grad, the new mean and m2 may be the old ones. mean is null without moments.
template <class T>
struct LangevinStep {
  const T *x, *grad, *step, *noise_std;  // step and noise_std: one per row
  const T *mean, *m2;
  const int64_t *count, *clock;  // count: samples in mean before this one; clock (may be null): added to counter
  T *out, *new_mean, *new_m2;
  int64_t rows, n;
  uint64_t seed, counter, first;  // first: index in the stream of the first real
  bool complex, nonneg;
  int threads;
};

}  // namespace pyrecon

PYRECON_PER_ISA(

    // out = x - step / 2 * grad + noise_std * xi, its positive part with nonneg; then the running moments take it in.
    template <class T> void langevin_step(const LangevinStep<T>& job);

)
