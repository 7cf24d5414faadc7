// What every binding needs: addresses arrive as integers, and the Python side (pyrecon/ops) has checked everything.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace pyrecon {

template <class T>
T* ptr(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void register_anderson(pybind11::module_& m);
void register_charbonnier(pybind11::module_& m);
void register_consistency(pybind11::module_& m);
void register_deq_mpi(pybind11::module_& m);
void register_epg(pybind11::module_& m);
void register_fbp(pybind11::module_& m);
void register_fit(pybind11::module_& m);
void register_joint(pybind11::module_& m);
void register_kaczmarz(pybind11::module_& m);
void register_langevin(pybind11::module_& m);
void register_learned_consistency(pybind11::module_& m);
void register_radon(pybind11::module_& m);
void register_rdn(pybind11::module_& m);
void register_rician(pybind11::module_& m);
void register_variation(pybind11::module_& m);
void register_sense(pybind11::module_& m);
void register_sine(pybind11::module_& m);

}  // namespace pyrecon
