// Inline PTX: what the kernels need of a Hopper GPU beyond CUDA C++, one function for each instruction.
//
// No other file contains PTX, so that the kernels can also run without a GPU: tests/support/hopper.h implements these
// functions, and the built-in ones of CUDA, for a CPU.

namespace ptx {

using u32 = unsigned int;
using u64 = unsigned long long;

// ---- shared memory, mbarriers, named barriers ----

__device__ __forceinline__ u32 shared_address(const void* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void mbarrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void mbarrier_wait(u32 barrier, u32 parity) {
  u32 done;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (!done);
}

// Starts a copy into shared memory; ``barrier`` completes its phase when all bytes have arrived.
__device__ __forceinline__ void bulk_copy(u32 to, const void* from, u32 bytes, u32 barrier) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

// Makes the mbarriers that this thread initialized visible to bulk copies.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Waits until THREADS threads have arrived at a named barrier, 1 to 15.
template <int THREADS>
__device__ __forceinline__ void named_barrier_sync(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(THREADS) : "memory");
}

// Makes what this thread wrote into shared memory visible to the tensor cores.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Register budget of each thread of a warpgroup: 240 in two consumers and 24 in the producer fit into 65,536 registers.
__device__ __forceinline__ void decrease_register_budget() { asm volatile("setmaxnreg.dec.sync.aligned.u32 24;"); }
__device__ __forceinline__ void increase_register_budget() { asm volatile("setmaxnreg.inc.sync.aligned.u32 240;"); }

// ---- asynchronous copies by each thread ----

__device__ __forceinline__ void cp_async_16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

__device__ __forceinline__ void cp_async_4(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- tensor cores ----

// Matrix descriptor of a panel or weight block: rows 128 bytes apart, groups of eight rows 1024 bytes apart, 128-byte
// swizzle. Adding 2 moves it by 16 columns.
__device__ __forceinline__ u64 matrix_descriptor(u32 address) {
  return static_cast<u64>((address & 0x3FFFF) >> 4) | static_cast<u64>(1) << 16 | static_cast<u64>(64) << 32 |
         static_cast<u64>(1) << 62;
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from reading accumulators earlier: products in flight write them behind its back.
//
// An accumulator must be cleared before its first use. If it were undefined, its registers would stay live through the
// whole loop over tiles, for the sake of what they held before.
template <int N>
__device__ __forceinline__ void fence_accumulators(float (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

#define NQ_SUM8(d, i)                                                                                         \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define NQ_SUM32(d, i) NQ_SUM8(d, i), NQ_SUM8(d, i + 8), NQ_SUM8(d, i + 16), NQ_SUM8(d, i + 24)
#define NQ_NAMES32                                                         \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"

// sum += a b for 16 columns of a panel and the high or low part of a weight block.
__device__ __forceinline__ void wgmma(float (&sum)[32], u64 a, u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" NQ_NAMES32 "}, %32, %33, 1, 1, 1, 0, 0;"
               : NQ_SUM32(sum, 0)
               : "l"(a), "l"(b));
}

// The same with a in registers.
__device__ __forceinline__ void wgmma_a_in_registers(float (&sum)[32], const u32* a, u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" NQ_NAMES32
               "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
               : NQ_SUM32(sum, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// ---- arithmetic ----

// Rounds two numbers to fp16; the first one occupies the lower 16 bits.
__device__ __forceinline__ u32 pack_fp16(float a, float b) {
  u32 both;
  asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(both) : "f"(a), "f"(b));
  return both;
}

__device__ __forceinline__ float2 unpack_fp16(u32 both) {
  float2 pair;
  asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;\n}"
      : "=f"(pair.x), "=f"(pair.y)
      : "r"(both));
  return pair;
}

// 2^x and 1 / x, accurate to about two units in the last place.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Loads what every tile reads again. The load is volatile, or the compiler would keep the values in registers from one
// tile to the next.
__device__ __forceinline__ float4 reload_float4(const float* from) {
  float4 value;
  asm volatile("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "l"(from));
  return value;
}

}  // namespace ptx
