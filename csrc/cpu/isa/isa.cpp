#include "cpu/isa/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace zweave {
namespace {

bool has_avx2() {
#ifdef ZWEAVE_X86
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

bool has_avx512() {
#ifdef ZWEAVE_X86
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

// Whether the processor has AMX's tiles and the kernel lets this process use them, which Linux wants to be
// asked for.
bool has_amx() {
#if defined(ZWEAVE_X86) && defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;  // asm/prctl.h: ARCH_REQ_XCOMP_PERM
  return has_avx512() && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

const Kernels& choose() {
  const char* variable = std::getenv("ZWEAVE_CPU_ISA");
  const std::string name = variable ? variable : "";
  const bool known = name.empty() || name == "scalar" || name == "avx2" || name == "avx512" || name == "amx";
  if (!known) {
    throw std::runtime_error("ZWEAVE_CPU_ISA is '" + name + "': use scalar, avx2, avx512 or amx");
  }
  if ((name == "amx" && !has_amx()) || (name == "avx512" && !has_avx512()) ||
      (name == "avx2" && !has_avx2())) {
    throw std::runtime_error("ZWEAVE_CPU_ISA is '" + name +
                             "', which this processor or build does not support");
  }
#ifdef ZWEAVE_X86
  if (name == "amx" || (name.empty() && has_amx())) return kernels_amx();
  if (name == "avx512" || (name.empty() && has_avx512())) return kernels_avx512();
  if (name == "avx2" || (name.empty() && has_avx2())) return kernels_avx2();
#endif
  return kernels_scalar();
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace zweave
