// Table of contents of pyrecon._core.
#include "bind.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/threads.hpp"

PYBIND11_MODULE(_core, m) {
  using namespace pyrecon;
  m.doc() = "CPU kernels of pyrecon. Takes addresses: call the checked functions in pyrecon.ops instead.";

  if (!has_isa(current_isa()))
    throw pybind11::import_error(std::string("pyrecon's kernels were built for ") + isa_name(current_isa()) +
                                 " only, which this processor does not run: install it here, or with "
                                 "PYRECON_LEVELS=ALL in the environment");

  m.def("isa", [] { return isa_name(current_isa()); }, "Level in use.");
  m.def("detected_isa", [] { return isa_name(detected_isa()); }, "Best level this processor runs.");
  m.def(
      "isa_levels",
      [] {
        pybind11::list levels;
        for (Isa level : {Isa::baseline, Isa::avx2, Isa::avx512})
          if (has_isa(level)) levels.append(isa_name(level));
        return pybind11::tuple(levels);
      },
      "Levels that this processor runs and this build has, lowest first.");
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
  register_charbonnier(m);
  register_consistency(m);
  register_deq_mpi(m);
  register_epg(m);
  register_fbp(m);
  register_fit(m);
  register_joint(m);
  register_kaczmarz(m);
  register_langevin(m);
  register_learned_consistency(m);
  register_radon(m);
  register_rdn(m);
  register_rician(m);
  register_variation(m);
  register_sense(m);
  register_sine(m);
}
