// How Python states a Kaczmarz problem, for the bindings of every device.
#pragma once

#include <pybind11/stl.h>

#include <array>

#include "bind.hpp"
#include "kaczmarz_problem.hpp"

namespace pyrecon {

using Sizes = std::array<std::int64_t, 7>;  // batch, rows, columns, steps, sweeps, order_per_sweep, nonneg
using Addresses =
    std::array<std::uintptr_t, 11>;  // A, y, x0, dual0, weight, order; x, dual, multipliers, active; workspace

template <class T>
Kaczmarz<T> kaczmarz_problem(const Sizes& sizes, int threads, const Addresses& at = {}) {
  return {ptr<const T>(at[0]),
          ptr<const T>(at[1]),
          ptr<const T>(at[2]),
          ptr<const T>(at[3]),
          ptr<const T>(at[4]),
          ptr<const std::int64_t>(at[5]),
          ptr<T>(at[6]),
          ptr<T>(at[7]),
          ptr<T>(at[8]),
          ptr<T>(at[9]),
          ptr<T>(at[10]),
          sizes[0],
          sizes[1],
          sizes[2],
          sizes[3],
          sizes[4],
          sizes[5] != 0,
          sizes[6] != 0,
          threads};
}

}  // namespace pyrecon
