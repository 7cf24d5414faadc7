// Which build of a kernel runs: every csrc/cpu/<family>.cpp is compiled once per level into its own namespace.
#pragma once

#include <cstdint>

namespace pyrecon {

enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2 };

Isa detected_isa() noexcept;         // the best level this processor runs
bool has_isa(Isa level) noexcept;    // it runs there, and this build has it
Isa current_isa() noexcept;          // the level in use: detected, or what PYRECON_ISA or force_isa() asked for
bool force_isa(Isa level) noexcept;  // false if this processor or build cannot run it
const char* isa_name(Isa level) noexcept;

}  // namespace pyrecon

// Declares the same functions in every level's namespace: PYRECON_PER_ISA(void f(int); void g();)
// PYRECON_SELECT(f<float>) is a pointer to the build of f that fits this processor. PYRECON_ONLY is the one level of a
// build that has no other.
#if !defined(PYRECON_ONLY)
#define PYRECON_PER_ISA(...)    \
  namespace pyrecon::baseline { \
  __VA_ARGS__                   \
  }                             \
  namespace pyrecon::avx2 {     \
  __VA_ARGS__                   \
  }                             \
  namespace pyrecon::avx512 {   \
  __VA_ARGS__                   \
  }
#define PYRECON_SELECT(...)                                                             \
  (::pyrecon::current_isa() == ::pyrecon::Isa::avx512 ? &::pyrecon::avx512::__VA_ARGS__ \
   : ::pyrecon::current_isa() == ::pyrecon::Isa::avx2 ? &::pyrecon::avx2::__VA_ARGS__   \
                                                      : &::pyrecon::baseline::__VA_ARGS__)
#else
#define PYRECON_PER_ISA(...)        \
  namespace pyrecon::PYRECON_ONLY { \
  __VA_ARGS__                       \
  }
#define PYRECON_SELECT(...) (&::pyrecon::PYRECON_ONLY::__VA_ARGS__)
#endif
