// OpenMP, without making it a requirement of the header's readers.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <chrono>

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

inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Threads of the present parallel region: fewer than asked for where OpenMP has a limit, or is inside another region.
inline int team_size() {
#ifdef _OPENMP
  return omp_get_num_threads();
#else
  return 1;
#endif
}

// Whether a team of threads pays. Starting one costs microseconds; but where something else holds the cores (OpenBLAS's
// threads spin for 0.1 s after each job), the team waits whole time slices for its last member, and one thread
// alone is faster: seen are 60 ms instead of 1.5 ms for an update after a small SVCCA on two cores. So a team
// that took much too long is not called again for a while. Results do not depend on it.
class TeamChoice {
 public:
  // `serial_seconds`: a generous estimate of what one thread would take.
  template <class Work>
  void run(double serial_seconds, int requested, Work work) {
    const auto start = Clock::now();
    const int team = serial_seconds < kWorthStarting || start < alone_until_ ? 1 : thread_count(requested);
    work(team);
    if (team == 1) return;
    const auto end = Clock::now();
    if (std::chrono::duration<double>(end - start).count() > 2 * serial_seconds + kSlice) alone_until_ = end + kPause;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr double kWorthStarting = 60e-6;
  static constexpr double kSlice = 1e-3;
  static constexpr std::chrono::milliseconds kPause{100};
  Clock::time_point alone_until_{};
};

}  // namespace streamcca
