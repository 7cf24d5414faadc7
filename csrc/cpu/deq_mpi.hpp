// All steps of DEQ-MPI, see pyrecon/ops/_deq_mpi.py for the law.
#pragma once

#include "cpu/anderson.hpp"
#include "cpu/learned_consistency.hpp"
#include "cpu/rdn.hpp"

namespace pyrecon {

enum class DataStep : int { ball = 0, exact = 1, learned = 2, released = 3 };

struct DeqShape {
  RdnShape network;      // with the batch, and the size of an image
  LearnedShape learned;  // of DataStep::learned and ::released
  int64_t rows;          // of the system matrix
  DataStep data;
  int64_t steps, memory;  // memory 0: plain steps
  double penalty, tolerance;
};

}  // namespace pyrecon

// matrix (rows, n), inverse (n, n) symmetric, start and state (batch, 2 n + rows), y (batch, rows), radius (batch,);
// report (batch, 3): steps taken, and the change |f(x) - x| / (|f(x)| + 1e-5) of the first and of the last.
PYRECON_PER_ISA(template <class T> void deq_mpi(const T* matrix, const T* inverse, const T* start, const T* y,
                                                const T* radius, const T* network, const T* learned,
                                                const int64_t* places, T* state, T* report, const DeqShape& shape,
                                                const AndersonOptions& mixing, int threads);)
