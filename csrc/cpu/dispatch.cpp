#include "cpu/dispatch.h"

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <cstring>

#include "core/error.h"

namespace streamcca {

extern const KernelTable kernels_baseline;
#ifdef STREAMCCA_X86
extern const KernelTable kernels_avx2;
extern const KernelTable kernels_avx512;
extern const KernelTable kernels_avx512_bf16;
#endif
#ifdef STREAMCCA_AMX
extern const MatrixUnit matrix_amx;
#endif

namespace {

struct Level {
  const KernelTable* kernels;
  bool runnable;
  bool pays = true;  // may be chosen without having been asked for
};

#ifdef STREAMCCA_AMX
// Linux gives a process the large registers of the unit only when it asks for them; on other systems nobody has been asked.
bool amx_runnable() {
#ifdef STREAMCCA_EMULATE_AMX
  return true;
#elif defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;
  static const bool granted = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
                              __builtin_cpu_supports("amx-int8") && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return granted;
#else
  return false;
#endif
}

// On two threads float32 rows were as fast either way with 128 columns (80 products a value), 6 % faster on the unit with 192
// (112) and 13 % with 256.
const KernelTable& kernels_amx() {
  static const KernelTable table = [] {
    KernelTable with_unit = kernels_avx512;
    with_unit.name = "amx";
    with_unit.matrix = &matrix_amx;
    with_unit.matrix_pays_from = 112;
    return with_unit;
  }();
  return table;
}

const KernelTable& kernels_amx_always() {
  static const KernelTable table = [] {
    KernelTable always = kernels_amx();
    always.matrix_pays_from = 0;
    return always;
  }();
  return table;
}
#endif

// __builtin_cpu_supports asks CPUID and, through XGETBV, whether the operating system saves the registers.
std::vector<Level> levels() {
#ifdef STREAMCCA_X86
  __builtin_cpu_init();
  const bool baseline = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");  // x86-64-v2
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool bfloat16 = avx512 && __builtin_cpu_supports("avx512bf16");
  return {
      {&kernels_baseline, baseline},
      {&kernels_avx2, baseline && avx2},
      {&kernels_avx512, baseline && avx512},
      // Twice the multiply-adds of float32 on Zen 4; on Sapphire Rapids half of them.
      {&kernels_avx512_bf16, baseline && bfloat16, __builtin_cpu_is("amd") != 0},
#ifdef STREAMCCA_AMX
      {&kernels_amx(), baseline && avx512 && amx_runnable()},
#endif
  };
#else
  return {{&kernels_baseline, true}};
#endif
}

const KernelTable& best_kernels() {
  const KernelTable* best = nullptr;
  for (const Level& level : levels()) {
    if (level.runnable && level.pays) best = level.kernels;
  }
  return *best;
}

// A level that somebody asked for works on everything, so that tests can reach all of it.
const KernelTable& when_asked_for(const KernelTable& kernels) {
#ifdef STREAMCCA_AMX
  if (&kernels == &kernels_amx()) return kernels_amx_always();
#endif
  return kernels;
}

}  // namespace

std::vector<const KernelTable*> runnable_kernels() {
  std::vector<const KernelTable*> result;
  for (const Level& level : levels()) {
    if (level.runnable) result.push_back(level.kernels);
  }
  return result;
}

const KernelTable& active_kernels() {
  const char* wanted = std::getenv("STREAMCCA_ISA");
  if (runnable_kernels().empty()) throw Error(ErrorKind::isa, "this CPU lacks SSE 4.2, which streamcca needs at least");
  if (!wanted || !*wanted) return best_kernels();
  std::string known;
  for (const Level& level : levels()) {
    if (std::strcmp(level.kernels->name, wanted) == 0) {
      if (level.runnable) return when_asked_for(*level.kernels);
      throw Error(ErrorKind::isa, std::string("STREAMCCA_ISA=") + wanted + ": this CPU cannot run that level; unset it, or set it to " +
                                      best_kernels().name + " or a lower level");
    }
    known += (known.empty() ? "" : ", ") + std::string(level.kernels->name);
  }
  throw Error(ErrorKind::isa, std::string("STREAMCCA_ISA=") + wanted + ": no such instruction-set level; expected one of " + known);
}

}  // namespace streamcca
