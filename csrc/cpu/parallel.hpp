// The one way kernels use threads. `threads` comes from torch.get_num_threads(); 1 means no OpenMP region at all.
#pragma once

#include <cstdint>

#include "cpu/simd.hpp"

namespace pyrecon::PYRECON_ISA {

// body(begin, end) over [0, n) in contiguous shares, one per thread; no thread gets fewer than `grain` items.
template <class Body>
PYRECON_INLINE void parallel_for(int threads, int64_t n, int64_t grain, const Body& body) {
  int64_t shares = grain > 0 ? n / grain : n;
  if (shares > threads) shares = threads;
  if (shares <= 1) {
    if (n > 0) body(int64_t{0}, n);
    return;
  }
#pragma omp parallel for num_threads(static_cast<int>(shares)) schedule(static, 1)
  for (int64_t s = 0; s < shares; ++s) body(n * s / shares, n * (s + 1) / shares);
}

}  // namespace pyrecon::PYRECON_ISA
