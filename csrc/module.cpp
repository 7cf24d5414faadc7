// Table of contents of pyrecon._core.
#include "bind.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/threads.hpp"

PYBIND11_MODULE(_core, m) {
  using namespace pyrecon;
  m.doc() = "CPU kernels of pyrecon. Takes addresses: call the checked functions in pyrecon.ops instead.";

  m.def("isa", [] { return isa_name(current_isa()); }, "Level in use.");
  m.def("detected_isa", [] { return isa_name(detected_isa()); }, "Best level this processor runs.");
  m.def(
      "force_isa", [](int level) { return force_isa(static_cast<Isa>(level)); }, pybind11::arg("level"),
      "Force level 0 baseline, 1 avx2, 2 avx512; False if it cannot run here.");
  m.def(
      "helpers",
      [] {
        const Helpers now = helpers();
        return pybind11::make_tuple(now.started, now.shares);
      },
      "Threads beside the calling one, and the shares of work they have done.");
  m.def("hold_helpers", &hold_helpers, pybind11::arg("held"),
        "For tests: helpers do nothing until released, as where other processes hold the processors.");
  m.def("delay_helpers", &delay_helpers, pybind11::arg("microseconds"),
        "For tests: helpers stop for so long in the middle of a share, as where they lose their processor.");
  m.def(
      "limit_threads",
      [](int openmp, int mkl) {
        const Limit before = limit_threads({openmp, mkl});
        return pybind11::make_tuple(before.openmp, before.mkl);
      },
      pybind11::arg("openmp"), pybind11::arg("mkl"),
      "Threads that OpenMP and MKL (0: as OpenMP) take for the calling thread; returns those before.");

  register_anderson(m);
  register_consistency(m);
  register_deq_mpi(m);
  register_kaczmarz(m);
  register_langevin(m);
  register_learned_consistency(m);
  register_rdn(m);
  register_variation(m);
  register_sense(m);
  register_sine(m);
}
