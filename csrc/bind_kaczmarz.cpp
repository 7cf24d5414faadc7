#include "bind.hpp"

namespace pyrecon {

void register_kaczmarz(pybind11::module_&) {}

}  // namespace pyrecon
