// Which kernel table to use: chosen when an accumulator is made, and kept by it. STREAMCCA_ISA forces a level.
#pragma once
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace streamcca {

// Levels built into this library that this CPU and operating system can run, worst first.
std::vector<const KernelTable*> runnable_kernels();

// The best runnable level, or the one named by the environment variable STREAMCCA_ISA (amx: then on views of any width). An unknown name
// or a level that this machine cannot run is an Error (kind isa), never an illegal instruction.
// Call it with the GIL held: the variable is read at every call, so that one test process can visit every level.
const KernelTable& active_kernels();

}  // namespace streamcca
