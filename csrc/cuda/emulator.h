// A block of CUDA threads on the CPU, for tests: every thread a fiber with a stack of its own, switched where the threads of a block or of
// a warp meet. What a kernel computes is what the documentation of the instructions says, written here from the documentation alone; a
// wrong fragment, a missing barrier or a missing wait in a kernel gives wrong numbers or a message, never speed.
//
// Harder than the hardware in places: shared memory starts as NaN; copy_async takes what was there at once, and copies only when it is
// waited for; warps run in another order after every meeting; the sums of the tensor cores keep no guard bits. While products of warp
// groups are in flight their sums read as NaN, and shared memory that changes under them is a failure. Bulk copies, too, take what was
// there at once, and come only when nothing else can go on.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

namespace streamcca::cuda::emulated {

void run_grid(std::size_t blocks, unsigned threads, std::size_t shared, const std::function<void()>& body);

unsigned thread_index();
std::size_t block_index();
std::size_t block_count();
unsigned char* shared_memory();
void sync_block();
unsigned ballot(bool vote);
// Where STREAMCCA_EMULATED_ORDER is set, for a test of one object on several streams: that what is asked of a stream now comes after all
// that others were asked for. A new value begins anew.
void check_order(void* stream);
bool is_late();  // the host never sees what kernels write for it, as if they were not done yet
float from_half(std::uint16_t h);
std::uint16_t to_half(float x);  // x must be a float16 number
void copy_async(void* shared, const void* global);
void commit_copies();
void wait_copies(int pending);
void load_matrices_transposed(const void* shared_row, std::uint32_t (&r)[4]);
void multiply_bfloat16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);
void multiply_float16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);
void multiply_float64(double& c0, double& c1, double a, double b);
unsigned shared_address(const void* p);
void barrier_start(unsigned barrier, unsigned arrivals);
void barriers_started();
void barrier_arrive(unsigned barrier);
void barrier_announce(unsigned barrier, unsigned bytes);
void barrier_wait(unsigned barrier, unsigned parity);
void copy_bulk(unsigned shared, const void* global, unsigned bytes, unsigned barrier);
void group_arrive();
void group_commit();
void group_wait(int pending);
void multiply_group(bool half, float (&d)[64], std::uint64_t left, std::uint64_t right, bool add);

}  // namespace streamcca::cuda::emulated
