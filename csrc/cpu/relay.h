// The order in which blocks pass through the strips of the state when every thread has a block of its own: a strip takes
// block after block, and a thread waits before a strip until the block before has been there. A block may be refused; then neither
// it nor a later one reaches any strip, since each waits for the one before.
#pragma once
#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

namespace streamcca {

class Relay {
 public:
  Relay(std::size_t strips, std::size_t blocks) : strips_(strips), end_(blocks) {}

  // Blocks [0, end()) are let through.
  std::size_t end() const { return end_.load(std::memory_order_acquire); }

  void refuse(std::size_t block) {
    std::size_t end = end_.load(std::memory_order_relaxed);
    while (block < end && !end_.compare_exchange_weak(end, block, std::memory_order_acq_rel)) {
    }
  }

  // Whether the strip is the block's now; false if a block before was refused.
  bool wait_for(std::size_t strip, std::size_t block) const {
    for (std::size_t turns = 0; strips_[strip].blocks.load(std::memory_order_acquire) != block; ++turns) {
      if (end() <= block) return false;
      if (turns < kTurnsBeforeYield) {
        relax();
      } else {
        std::this_thread::yield();  // the other thread may need this core
      }
    }
    return true;
  }

  void pass_on(std::size_t strip, std::size_t block) { strips_[strip].blocks.store(block + 1, std::memory_order_release); }

 private:
  static constexpr std::size_t kTurnsBeforeYield = 4000;

  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  // Blocks that have been there. A line each, as its neighbors belong to other threads.
  struct alignas(64) Strip {
    std::atomic<std::size_t> blocks{0};
  };
  std::vector<Strip> strips_;
  std::atomic<std::size_t> end_;
};

}  // namespace streamcca
