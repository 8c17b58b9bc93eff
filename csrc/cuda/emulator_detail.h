// What the parts of the emulator know of each other; nothing of it is for kernels.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace streamcca::cuda::emulated {

[[noreturn]] void fail(const char* what);
unsigned block_size();
// Shared memory by the addresses that descriptors hold. It does not start at a multiple of what swizzles want.
unsigned offset_in_shared(const void* p);
const unsigned char* shared_at(unsigned address, std::size_t bytes);
// This thread waits while a count has a value.
void wait_while(const unsigned long* count, unsigned long value);
// What is left of a block of threads before it; the oldest bulk copy comes, if there is one.
void forget_barriers();
bool land_bulk_copy();
// That all lanes of the warp are here, with the same values.
void check_same(const void* values, std::size_t bytes);
void check_landed();
unsigned long& copies_landed();  // how often shared memory has been written to by copies
float from_bfloat16(std::uint16_t b);
// c[n] + sum a[k] b[k][n] over 8 k, for 8 n, as tensor cores do it.
void add_truncated(const float* a, const float (*b)[8], float* c);

}  // namespace streamcca::cuda::emulated
