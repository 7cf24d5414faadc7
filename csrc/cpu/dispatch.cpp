#include "cpu/dispatch.hpp"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace pyrecon {
namespace {

Isa detect() noexcept {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#if defined(PYRECON_EMULATE_AVX512)
  if (avx2) return Isa::avx512;
#else
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
#endif
  if (avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa initial() noexcept {
#if defined(PYRECON_ONLY)
  return Isa::PYRECON_ONLY;
#else
  const Isa best = detect();
  const char* wanted = std::getenv("PYRECON_ISA");
  if (wanted == nullptr) return best;
  for (Isa level : {Isa::baseline, Isa::avx2, Isa::avx512})
    if (std::strcmp(wanted, isa_name(level)) == 0 && level <= best) return level;
  return best;
#endif
}

std::atomic<Isa>& active() noexcept {
  static std::atomic<Isa> level{initial()};
  return level;
}

}  // namespace

Isa detected_isa() noexcept {
  static const Isa level = detect();
  return level;
}

bool has_isa(Isa level) noexcept {
#if defined(PYRECON_ONLY)
  if (level != Isa::PYRECON_ONLY) return false;
#endif
  return level <= detected_isa();
}

Isa current_isa() noexcept { return active().load(std::memory_order_relaxed); }

bool force_isa(Isa level) noexcept {
  if (!has_isa(level)) return false;
  active().store(level, std::memory_order_relaxed);
  return true;
}

const char* isa_name(Isa level) noexcept {
  switch (level) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    default:
      return "baseline";
  }
}

}  // namespace pyrecon
