#include "cpu/dispatch.hpp"
