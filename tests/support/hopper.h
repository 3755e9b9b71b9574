// The functions of ptx.cuh for a CPU, which hopper_on_cpu.py compiles in its place.
//
// The emulated tensor cores add the products of 16 columns exactly and round the sum towards zero, as in
// benchmarks/rounding.py. Copies and products complete at once, so this does not detect a missing wait.
#include "gpu.h"

// ---- ptx.cuh
// -----------------------------------------------------------------------------------------------------------------

namespace ptx {

using u32 = unsigned int;
using u64 = unsigned long long;

inline u32 shared_address(const void* pointer) { return static_cast<u32>(static_cast<const char*>(pointer) - shared); }

inline void mbarrier_init(u32 barrier, u32 arrivals) {
  emulated::barriers[barrier] = {static_cast<int>(arrivals), static_cast<int>(arrivals), 0};
}
inline void mbarrier_arrive(u32 barrier) { emulated::barriers.at(barrier).arrive(); }
inline void mbarrier_wait(u32 barrier, u32 parity) {
  emulated::wait_until([&] { return (emulated::barriers.at(barrier).phase & 1) != static_cast<int>(parity); });
}
inline void bulk_copy(u32 to, const void* from, u32 bytes, u32 barrier) {
  std::memcpy(shared + to, from, bytes);
  mbarrier_arrive(barrier);
}
inline void fence_mbarrier_init() {}

template <int THREADS>
void named_barrier_sync(int barrier) {
  emulated::thread_barriers[barrier].wait(THREADS);
}
inline void fence_async_proxy() {}
inline void decrease_register_budget() {}
inline void increase_register_budget() {}

inline void cp_async_16(void* to, const void* from) { std::memcpy(to, from, 16); }
inline void cp_async_4(void* to, const void* from) { std::memcpy(to, from, 4); }
inline void cp_async_commit() {}
template <int PENDING>
void cp_async_wait() {}

inline u64 matrix_descriptor(u32 address) { return address >> 4; }
inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int PENDING>
void wgmma_wait() {}
template <int N>
void fence_accumulators(float (&)[N]) {}

inline float number(u32 address) {
  _Float16 half;
  std::memcpy(&half, shared + address, 2);
  return half;
}

inline float towards_zero(double x) {
  const float nearest = static_cast<float>(x);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(x) ? std::nextafterf(nearest, 0.0f) : nearest;
}

// Element k of a row of a panel or weight block: rows of 128 bytes, whose 16-byte pieces are swizzled by the address.
inline float element(u64 descriptor, int row, int k) {
  const u32 address = static_cast<u32>(descriptor << 4) + row * 128 + 2 * k;
  return number(address ^ (address >> 7 & 7) << 4);
}

// A thread's share of sum += a b, for its two rows of a, 16 columns each.
inline void add(float (&sum)[32], const float (&a)[2][16], u64 b) {
  const int column = threadIdx.x % 4 * 2;
  for (int i = 0; i < 32; ++i) {
    double total = sum[i];
    for (int k = 0; k < 16; ++k)
      total += static_cast<double>(a[i / 2 % 2][k]) * element(b, i / 4 * 8 + column + i % 2, k);
    sum[i] = towards_zero(total);
  }
}

inline void wgmma(float (&sum)[32], u64 a, u64 b) {
  const int row = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  float rows[2][16];
  for (int j = 0; j < 2; ++j)
    for (int k = 0; k < 16; ++k) rows[j][k] = element(a, row + 8 * j, k);
  add(sum, rows, b);
}

inline u32 pack_fp16(float a, float b) {
  const _Float16 both[2] = {static_cast<_Float16>(a), static_cast<_Float16>(b)};
  u32 bits;
  std::memcpy(&bits, both, 4);
  return bits;
}
inline float2 unpack_fp16(u32 bits) {
  _Float16 both[2];
  std::memcpy(both, &bits, 4);
  return {static_cast<float>(both[0]), static_cast<float>(both[1])};
}

// Each of the four threads of a row holds two of its first eight columns, then two of the next eight.
inline void wgmma_a_in_registers(float (&sum)[32], const u32* a, u64 b) {
  static u32 by_warp[16][32][4];
  u32(&values)[32][4] = by_warp[threadIdx.x / 32];
  const int lane = threadIdx.x % 32;
  std::memcpy(values[lane], a, 16);
  emulated::warp_barrier();
  float rows[2][16];
  for (int k = 0; k < 16; k += 2)
    for (int j = 0; j < 2; ++j) {
      const float2 pair = unpack_fp16(values[lane / 4 * 4 + k % 8 / 2][k / 8 * 2 + j]);
      rows[j][k] = pair.x;
      rows[j][k + 1] = pair.y;
    }
  emulated::warp_barrier();
  add(sum, rows, b);
}

inline float exp2_approx(float x) { return std::exp2f(x); }
inline float reciprocal_approx(float x) { return 1 / x; }
inline float4 reload_float4(const float* from) {
  float4 value;
  std::memcpy(&value, from, 16);
  return value;
}

}  // namespace ptx
