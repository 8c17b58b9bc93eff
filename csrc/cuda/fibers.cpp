#include "cuda/fibers.h"

#include <cstdint>
#include <cstdlib>

namespace streamcca::cuda::emulated {
namespace {

thread_local Fiber* entered = nullptr;
thread_local void (*entry)() = nullptr;

void begin() {
  void (*function)() = entry;
  function();
  entered->leave();
  std::abort();
}

}  // namespace

#ifdef __x86_64__

// swapcontext() asks the kernel for the signal mask each time, which is 20 times as slow; an emulated product switches a million times.
// Saves what a called function must keep (System V ABI), stores the stack pointer and goes on where another one was stored.
extern "C" void streamcca_switch_stacks(void** from, void* to);
__asm__(R"(
  .text
  .local streamcca_switch_stacks
  .type streamcca_switch_stacks, @function
streamcca_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

void Fiber::start(void (*function)()) {
  if (!stack_) stack_ = std::make_unique<unsigned char[]>(kStackBytes);
  entry = function;
  // As if begin() had been called: 8 bytes off a multiple of 16 when it starts; six registers below the address.
  auto top = (reinterpret_cast<std::uintptr_t>(stack_.get()) + kStackBytes) / 16 * 16 - 8;
  auto* slots = reinterpret_cast<void**>(top);
  *--slots = reinterpret_cast<void*>(&begin);
  for (int i = 0; i < 6; ++i) *--slots = nullptr;
  inside_ = slots;
}

void Fiber::enter() {
  Fiber* before = entered;
  entered = this;
  streamcca_switch_stacks(&outside_, inside_);
  entered = before;
}

void Fiber::leave() { streamcca_switch_stacks(&inside_, outside_); }

#else

void Fiber::start(void (*function)()) {
  if (!stack_) stack_ = std::make_unique<unsigned char[]>(kStackBytes);
  entry = function;
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = stack_.get();
  inside_.uc_stack.ss_size = kStackBytes;
  inside_.uc_link = nullptr;
  makecontext(&inside_, &begin, 0);
}

void Fiber::enter() {
  Fiber* before = entered;
  entered = this;
  swapcontext(&outside_, &inside_);
  entered = before;
}

void Fiber::leave() { swapcontext(&inside_, &outside_); }

#endif

}  // namespace streamcca::cuda::emulated
