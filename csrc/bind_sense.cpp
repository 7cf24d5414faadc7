#include "bind.hpp"

namespace pyrecon {

void register_sense(pybind11::module_&) {}

}  // namespace pyrecon
