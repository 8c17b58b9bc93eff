// OpenMP, without making it a requirement of the header's readers.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

namespace streamcca {

// `requested` <= 0 means what OpenMP would use: OMP_NUM_THREADS, torch.set_num_threads or all cores.
inline int thread_count(int requested) {
#ifdef _OPENMP
  return requested > 0 ? requested : omp_get_max_threads();
#else
  (void)requested;
  return 1;
#endif
}

}  // namespace streamcca
