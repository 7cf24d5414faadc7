// The problem that the Kaczmarz kernels of every device take.
#pragma once

#include <cstdint>

namespace pyrecon {

// Arrays are dense with the batch axis first; a complex number is two adjacent reals. Sizes count rows, unknowns and
// samples, not reals. Null pointers: x0 and dual0 mean zero, order means 0, 1, ..., steps - 1, outputs are not wanted.
template <class T>
struct Kaczmarz {
  const T* A;                 // (rows, columns)
  const T* y;                 // (batch, rows)
  const T* x0;                // (batch, columns)
  const T* dual0;             // (batch, rows)
  const T* weight;            // (batch), real
  const std::int64_t* order;  // (steps), or (sweeps, steps) if order_per_sweep
  T* x;                       // out (batch, columns)
  T* dual;                    // out (batch, rows): the sum of the multipliers of each row
  T* multipliers;             // out (sweeps, batch, steps): the multiplier of every step
  T* active;                  // out (sweeps, batch, columns), real: 0 where positivity cut, 1 elsewhere
  T* workspace;               // as many elements as the device's kaczmarz_workspace() says, aligned to 64 bytes
  std::int64_t batch, rows, columns, steps, sweeps;
  bool order_per_sweep, nonneg;
  int threads;
};

}  // namespace pyrecon
