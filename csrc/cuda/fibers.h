// A function with a stack of its own, entered and left again and again on one thread of the system.
#pragma once
#include <cstddef>
#include <memory>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace streamcca::cuda::emulated {

class Fiber {
 public:
  void start(void (*function)());  // from its beginning, at the next enter()
  void enter();                    // until it leaves or its function returns
  void leave();

 private:
  static constexpr std::size_t kStackBytes = 128 * 1024;
  std::unique_ptr<unsigned char[]> stack_;
#ifdef __x86_64__
  void* inside_ = nullptr;  // stack pointers
  void* outside_ = nullptr;
#else
  ucontext_t inside_, outside_;
#endif
};

}  // namespace streamcca::cuda::emulated
