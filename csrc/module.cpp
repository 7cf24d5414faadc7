// Table of contents of pyrecon._core.
#include "bind.hpp"
#include "cpu/dispatch.hpp"

PYBIND11_MODULE(_core, m) {
  using namespace pyrecon;
  m.doc() = "CPU kernels of pyrecon. Takes addresses: call the checked functions in pyrecon.ops instead.";

  m.def("isa", [] { return isa_name(current_isa()); }, "Level in use.");
  m.def("detected_isa", [] { return isa_name(detected_isa()); }, "Best level this processor runs.");
  m.def(
      "force_isa", [](int level) { return force_isa(static_cast<Isa>(level)); }, pybind11::arg("level"),
      "Force level 0 baseline, 1 avx2, 2 avx512; False if it cannot run here.");

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
