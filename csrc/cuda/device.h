// The few words in which the kernels differ from standard C++: to nvcc the instructions themselves, to a host compiler (in a build with
// STREAMCCA_EMULATE_CUDA=ON, for tests) functions of emulator.h that do the same among fibers. Kernels include nothing else of either
// world.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/rows.h"
#include "cuda/layout.h"
#include "cuda/runtime.h"

#ifdef __CUDACC__

#include <cuda_runtime.h>

#define STREAMCCA_KERNEL __global__ __launch_bounds__(256)
#define STREAMCCA_DENSE_KERNEL __global__ __launch_bounds__(256, 5)  // blocks at once on a processor: what waits for memory
#define STREAMCCA_GROUPS_KERNEL __global__ __launch_bounds__(384, 1)
#define STREAMCCA_DEVICE __device__ __forceinline__
#define STREAMCCA_BOTH __host__ __device__ inline

namespace streamcca::cuda {

STREAMCCA_DEVICE unsigned thread_index() { return threadIdx.x; }
STREAMCCA_DEVICE std::size_t block_index() { return blockIdx.x; }
STREAMCCA_DEVICE std::size_t block_count() { return gridDim.x; }
STREAMCCA_DEVICE void sync_block() { __syncthreads(); }
STREAMCCA_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char dynamic_shared[];
  return dynamic_shared;
}
STREAMCCA_DEVICE void sync_warp() { __syncwarp(); }
STREAMCCA_DEVICE unsigned ballot(bool vote) { return __ballot_sync(0xffffffffu, vote); }
STREAMCCA_DEVICE void atomic_max(unsigned* p, unsigned value) { atomicMax(p, value); }
STREAMCCA_DEVICE void atomic_max(unsigned long long* p, unsigned long long value) { atomicMax(p, value); }
STREAMCCA_DEVICE void atomic_min(unsigned long long* p, unsigned long long value) { atomicMin(p, value); }
STREAMCCA_DEVICE void store_for_host(volatile unsigned* p, unsigned value) {
  *p = value;
  __threadfence_system();
}

STREAMCCA_DEVICE float from_half(std::uint16_t h) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(h));
  return value;
}

STREAMCCA_DEVICE std::uint16_t to_half(float x) {
  std::uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return half;
}

// cp.async (PTX ISA, "Data Movement and Conversion Instructions: cp.async"): 16 bytes into shared memory, complete after wait_copies.
STREAMCCA_DEVICE void copy_async(void* shared, const void* global) {
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
STREAMCCA_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
STREAMCCA_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

STREAMCCA_DEVICE void load_matrices_transposed(const void* shared_row, std::uint32_t (&r)[4]) {
  const auto from = static_cast<unsigned>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}

STREAMCCA_DEVICE void multiply_bfloat16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

STREAMCCA_DEVICE void multiply_float16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c (16 x 8) += a (16 x 16) b (16 x 8), fragments as of mma.m16n8k16. Four of m8n8k4 for each of its halves have the same fragments; on
// an H200 they run at half the speed (33 against 66 TFLOP/s).
STREAMCCA_DEVICE void multiply_float64(double& c0, double& c1, double a, double b) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};" : "+d"(c0), "+d"(c1) : "d"(a), "d"(b));
}
#if __CUDA_ARCH__ >= 900
#define STREAMCCA_LARGE_FLOAT64
STREAMCCA_DEVICE void multiply_float64(double (&c)[4], const double (&a)[8], const double (&b)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7, %8, %9, %10, %11}, {%12, %13, %14, %15}, "
      "{%0, %1, %2, %3};"
      : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
      : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(a[4]), "d"(a[5]), "d"(a[6]), "d"(a[7]), "d"(b[0]), "d"(b[1]), "d"(b[2]), "d"(b[3]));
}
#endif

// Instructions of warp groups, four warps that start at a multiple of 128 threads (PTX ISA, "Asynchronous Warpgroup Level Matrix
// Instructions"), of sm_90a alone: elsewhere they trap, and the host does not launch them. The sums are in flight from the first product
// until they are waited for, and so is the shared memory that is multiplied.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define STREAMCCA_GROUP_ASM(...) asm volatile(__VA_ARGS__)
#else
#define STREAMCCA_GROUP_ASM(...) __trap()
#endif

STREAMCCA_DEVICE unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }
// Barriers in shared memory (PTX ISA, "mbarrier"): a phase ends when as many have arrived as it was started with and all bytes have come
// that were announced; waiting is for the end of the phase of a parity, of which the first has 0.
STREAMCCA_DEVICE void barrier_start(unsigned barrier, unsigned arrivals) {
  STREAMCCA_GROUP_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// What was started by this thread is known to copies, and after sync_block() to all threads.
STREAMCCA_DEVICE void barriers_started() {
  STREAMCCA_GROUP_ASM("fence.mbarrier_init.release.cluster;" :: : "memory");
  STREAMCCA_GROUP_ASM("fence.proxy.async.shared::cta;" :: : "memory");
}
STREAMCCA_DEVICE void barrier_arrive(unsigned barrier) {
  STREAMCCA_GROUP_ASM("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
STREAMCCA_DEVICE void barrier_announce(unsigned barrier, unsigned bytes) {  // and arrives
  STREAMCCA_GROUP_ASM("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
STREAMCCA_DEVICE void barrier_wait(unsigned barrier, unsigned parity) {
  STREAMCCA_GROUP_ASM(
      "{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra done;\nbra again;\ndone:\n}" ::"r"(barrier),
      "r"(parity) : "memory");
}
// Copies memory that lies together, by no thread; the barrier counts what has come. Addresses and sizes are multiples of 16.
STREAMCCA_DEVICE void copy_bulk(unsigned shared, const void* global, unsigned bytes, unsigned barrier) {
  STREAMCCA_GROUP_ASM("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared), "l"(global),
                      "r"(bytes), "r"(barrier) : "memory");
}
// How many registers each thread of a warp group has from here on.
template <int kCount>
STREAMCCA_DEVICE void fewer_registers() {
  STREAMCCA_GROUP_ASM("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
STREAMCCA_DEVICE void more_registers() {
  STREAMCCA_GROUP_ASM("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
STREAMCCA_DEVICE void group_arrive() { STREAMCCA_GROUP_ASM("wgmma.fence.sync.aligned;" :: : "memory"); }
STREAMCCA_DEVICE void group_commit() { STREAMCCA_GROUP_ASM("wgmma.commit_group.sync.aligned;" :: : "memory"); }
template <int kPending>
STREAMCCA_DEVICE void group_wait() {
  STREAMCCA_GROUP_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of a register across.
STREAMCCA_DEVICE void hold(float& x) { asm volatile("" : "+f"(x)::"memory"); }

// d (64 x 128, a part in each thread) = or += left right', both with 16 columns behind one another in shared memory.
template <bool kHalf>
STREAMCCA_DEVICE void multiply_group(float (&d)[64], std::uint64_t left, std::uint64_t right, int add) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  // clang-format off
  if constexpr (kHalf) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, p, 1, 1, 1, 1;\n"
                 "}\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
                 : "l"(left), "l"(right), "r"(add));
  } else {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, p, 1, 1, 1, 1;\n"
                 "}\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
                 : "l"(left), "l"(right), "r"(add));
  }
  // clang-format on
#else
  (void)d, (void)left, (void)right, (void)add;
  __trap();
#endif
}

template <class Parameters>
void launch(void (*kernel)(Parameters), std::size_t blocks, unsigned threads, std::size_t shared, Stream stream,
            const Parameters& parameters) {
  if (blocks == 0) return;
  check_grid(blocks);
  if (shared > 48 * 1024) {
    check_result(static_cast<int>(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                       static_cast<int>(shared))),
                 "shared memory of a kernel");
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared, static_cast<cudaStream_t>(stream)>>>(parameters);
  check_result(static_cast<int>(cudaGetLastError()), "launch of a kernel");
}

}  // namespace streamcca::cuda

#else

#include "cuda/emulator.h"

#define STREAMCCA_KERNEL
#define STREAMCCA_DENSE_KERNEL
#define STREAMCCA_GROUPS_KERNEL
#define STREAMCCA_DEVICE inline
#define STREAMCCA_BOTH inline

namespace streamcca::cuda {

inline unsigned thread_index() { return emulated::thread_index(); }
inline std::size_t block_index() { return emulated::block_index(); }
inline std::size_t block_count() { return emulated::block_count(); }
inline void sync_block() { emulated::sync_block(); }
inline unsigned char* shared_memory() { return emulated::shared_memory(); }
inline void sync_warp() { (void)emulated::ballot(false); }
inline unsigned ballot(bool vote) { return emulated::ballot(vote); }
template <class T>
void atomic_max(T* p, T value) {
  if (*p < value) *p = value;  // fibers are switched at collective operations only
}
template <class T>
void atomic_min(T* p, T value) {
  if (value < *p) *p = value;
}
inline void store_for_host(volatile unsigned* p, unsigned value) {
  if (!emulated::is_late()) *p = value;
}
inline float from_half(std::uint16_t h) { return emulated::from_half(h); }
inline std::uint16_t to_half(float x) { return emulated::to_half(x); }
inline void copy_async(void* shared, const void* global) { emulated::copy_async(shared, global); }
inline void commit_copies() { emulated::commit_copies(); }
template <int kPending>
void wait_copies() {
  emulated::wait_copies(kPending);
}
inline void load_matrices_transposed(const void* shared_row, std::uint32_t (&r)[4]) { emulated::load_matrices_transposed(shared_row, r); }
inline void multiply_bfloat16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  emulated::multiply_bfloat16(c, a, b0, b1);
}
inline void multiply_float16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  emulated::multiply_float16(c, a, b0, b1);
}
inline void multiply_float64(double& c0, double& c1, double a, double b) { emulated::multiply_float64(c0, c1, a, b); }
inline unsigned shared_address(const void* p) { return emulated::shared_address(p); }
inline void barrier_start(unsigned barrier, unsigned arrivals) { emulated::barrier_start(barrier, arrivals); }
inline void barriers_started() { emulated::barriers_started(); }
inline void barrier_arrive(unsigned barrier) { emulated::barrier_arrive(barrier); }
inline void barrier_announce(unsigned barrier, unsigned bytes) { emulated::barrier_announce(barrier, bytes); }
inline void barrier_wait(unsigned barrier, unsigned parity) { emulated::barrier_wait(barrier, parity); }
inline void copy_bulk(unsigned shared, const void* global, unsigned bytes, unsigned barrier) {
  emulated::copy_bulk(shared, global, bytes, barrier);
}
template <int>
void fewer_registers() {}
template <int>
void more_registers() {}
inline void group_arrive() { emulated::group_arrive(); }
inline void group_commit() { emulated::group_commit(); }
template <int kPending>
void group_wait() {
  emulated::group_wait(kPending);
}
inline void hold(float&) {}
template <bool kHalf>
void multiply_group(float (&d)[64], std::uint64_t left, std::uint64_t right, int add) {
  emulated::multiply_group(kHalf, d, left, right, add != 0);
}

template <class Parameters>
void launch(void (*kernel)(Parameters), std::size_t blocks, unsigned threads, std::size_t shared, Stream stream,
            const Parameters& parameters) {
  if (blocks == 0) return;
  check_grid(blocks);
  emulated::check_order(stream);
  emulated::run_grid(blocks, threads, shared, [&] { kernel(parameters); });
}

}  // namespace streamcca::cuda

#endif

namespace streamcca::cuda {

#ifndef STREAMCCA_LARGE_FLOAT64
STREAMCCA_DEVICE void multiply_float64(double (&c)[4], const double (&a)[8], const double (&b)[4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    multiply_float64(c[0], c[1], a[2 * k], b[k]);
    multiply_float64(c[2], c[3], a[2 * k + 1], b[k]);
  }
}
#endif

STREAMCCA_DEVICE std::uint32_t float_bits(float x) {
  union {
    float value;
    std::uint32_t bits;
  } u{x};
  return u.bits;
}
STREAMCCA_DEVICE float from_float_bits(std::uint32_t bits) {
  union {
    std::uint32_t bits;
    float value;
  } u{bits};
  return u.value;
}
STREAMCCA_DEVICE float from_bfloat16(std::uint16_t b) { return from_float_bits(static_cast<std::uint32_t>(b) << 16); }

// To nearest, ties to even; NaN stays NaN.
STREAMCCA_DEVICE std::uint16_t to_bfloat16(float x) {
  const std::uint32_t bits = float_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

STREAMCCA_DEVICE bool is_void(const Status* status, unsigned long long batch) { return status->refused_batch <= batch; }

// One element of a batch that is not float64, exactly.
STREAMCCA_DEVICE float element_as_float(const Rows& rows, std::size_t row, std::size_t column) {
  const unsigned char* p = rows.element(row, column);
  if (rows.dtype == DType::f16) return from_half(*reinterpret_cast<const std::uint16_t*>(p));
  if (rows.dtype == DType::bf16) return from_bfloat16(*reinterpret_cast<const std::uint16_t*>(p));
  return *reinterpret_cast<const float*>(p);
}
// Any element, exactly.
STREAMCCA_DEVICE double element_as_double(const Rows& rows, std::size_t row, std::size_t column) {
  if (rows.dtype == DType::f64) return *reinterpret_cast<const double*>(rows.element(row, column));
  return static_cast<double>(element_as_float(rows, row, column));
}

}  // namespace streamcca::cuda
