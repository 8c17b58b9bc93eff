#include "cpu/dispatch.h"

#include <cstdlib>
#include <cstring>

#include "core/error.h"

namespace streamcca {

extern const KernelTable kernels_baseline;
#ifdef STREAMCCA_X86
extern const KernelTable kernels_avx2;
extern const KernelTable kernels_avx512;
#endif

namespace {

struct Level {
  const KernelTable* kernels;
  bool runnable;
};

// __builtin_cpu_supports asks CPUID and, through XGETBV, whether the operating system saves the registers.
std::vector<Level> levels() {
#ifdef STREAMCCA_X86
  __builtin_cpu_init();
  const bool baseline = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");  // x86-64-v2
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return {{&kernels_baseline, baseline}, {&kernels_avx2, baseline && avx2}, {&kernels_avx512, baseline && avx512}};
#else
  return {{&kernels_baseline, true}};
#endif
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
  if (!wanted || !*wanted) return *runnable_kernels().back();
  std::string known;
  for (const Level& level : levels()) {
    if (std::strcmp(level.kernels->name, wanted) == 0) {
      if (level.runnable) return *level.kernels;
      throw Error(ErrorKind::isa, std::string("STREAMCCA_ISA=") + wanted + ": this CPU cannot run that level; unset it, or set it to " +
                                      runnable_kernels().back()->name + " or a lower level");
    }
    known += (known.empty() ? "" : ", ") + std::string(level.kernels->name);
  }
  throw Error(ErrorKind::isa, std::string("STREAMCCA_ISA=") + wanted + ": no such instruction-set level; expected one of " + known);
}

}  // namespace streamcca
