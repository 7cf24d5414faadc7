// Anderson mixing of batched fixed-point iterations.
#pragma once

#include "cpu/dispatch.hpp"

namespace pyrecon {

// One tensor of the state: sample b of f(x) starts at fx + b * length, and lies at `offset` in a row of the workspace.
template <class T>
struct Component {
  const T* fx;
  int64_t length;
  int64_t offset;
};

template <class T>
struct AndersonWorkspace {
  T* H;            // (rows, m, n): x + beta * g
  T* G;            // (rows, m, n): g = f(x) - x
  double* gram;    // (rows, m, m): <g_i, g_j>, both triangles
  int64_t* count;  // (rows,): iterates stored since the last restart; slot count % m is written next
  int64_t m, n;
};

struct AndersonOptions {
  double beta, ridge;
  bool absolute_ridge;
  double safeguard;  // restart a sample whose |g| exceeds this multiple of its last one; 0 never
};

}  // namespace pyrecon

PYRECON_PER_ISA(

    // next[b] = sum_i a_i (X_i + beta G_i) with a = argmin |sum a_i G_i|^2 + ridge |a|^2, sum a_i = 1, over the newest
    // min(count, m) slots; first refreshes row and column (count - 1) % m of gram from G.
    template <class T>
    void anderson_mix(const T* X, const T* G, T* gram, const int64_t* count, int64_t count_stride, T* next,
                      int64_t batch, int64_t m, int64_t n, const AndersonOptions& options, int threads);

    // One solver step for `active` samples: pushes f(x), mixes, and overwrites x with the next iterate. rows[k] is the
    // workspace row of sample k, or k where rows is null. norms: (active, 2) |f(x) - x|^2 and |f(x)|^2.
    template <class T> void anderson_advance(const Component<T>* components, int64_t n_components, T* x,
                                             const int64_t* rows, int64_t active, const AndersonWorkspace<T>& work,
                                             double* norms, const AndersonOptions& options, int threads);

)
