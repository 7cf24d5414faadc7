#include "bind.hpp"

namespace pyrecon {

void register_variation(pybind11::module_&) {}

}  // namespace pyrecon
