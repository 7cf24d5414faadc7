// Shares of work on the threads of this process, see cpu/threads.cpp. Compiled once, for all instruction sets.
#pragma once

#include <cstdint>

namespace pyrecon {

// share(body, s) for every s in [0, shares), side by side as far as helpers come; returns when all are done. A call
// from within a share, or while another thread has the helpers, runs them one after the other.
void run_shares(int shares, void (*share)(const void* body, int s), const void* body) noexcept;

struct Helpers {
  int started;      // threads of the pool
  uint64_t shares;  // what they have done so far
};
Helpers helpers() noexcept;

// For tests: as if another process held their cores, no helper takes a share until this is called with false.
void hold_helpers(bool held) noexcept;
// And as if they lost them in the middle of a share for so long.
void delay_helpers(int microseconds) noexcept;

// How many threads OpenMP and MKL, and so torch, take for the calling thread.
struct Limit {
  int openmp, mkl;  // 0 for MKL: as many as OpenMP
};
Limit limit_threads(Limit limit) noexcept;  // returns the limit before

}  // namespace pyrecon
