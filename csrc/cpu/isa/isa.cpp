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

#ifdef ZWEAVE_X86
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512_vnni() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_avx512() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }

// Whether the processor has AMX's tiles and the kernel lets this process use them, which Linux wants to be
// asked for.
bool has_amx() {
#if defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;  // asm/prctl.h: ARCH_REQ_XCOMP_PERM
  return has_avx512() && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#endif

// A set of instructions, the widest first.
struct Isa {
  const char* name;
  bool (*is_supported)();
  const Kernels& (*kernels)();
};

constexpr Isa kIsas[] = {
#ifdef ZWEAVE_X86
    {"amx", has_amx, kernels_amx},
    {"avx512", has_avx512, kernels_avx512},
    {"avx512_vnni", has_avx512_vnni, kernels_avx512_vnni},
    {"avx2", has_avx2, kernels_avx2},
#endif
    {"scalar", [] { return true; }, kernels_scalar},
};

const Kernels& choose() {
  const char* variable = std::getenv("ZWEAVE_CPU_ISA");
  const std::string name = variable ? variable : "";
  for (const Isa& isa : kIsas) {
    if (name.empty() ? isa.is_supported() : name == isa.name && isa.is_supported()) return isa.kernels();
  }
  for (const char* known : {"scalar", "avx2", "avx512_vnni", "avx512", "amx"}) {
    if (name == known) {
      throw std::runtime_error("ZWEAVE_CPU_ISA is '" + name +
                               "', which this processor or build does not support");
    }
  }
  throw std::runtime_error("ZWEAVE_CPU_ISA is '" + name + "': use scalar, avx2, avx512_vnni, avx512 or amx");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace zweave
