// What ptx.cuh has, on a CPU, for hopper_on_cpu.py.
//
// The tensor cores add 16 columns' products exactly and round the sum towards zero, as rounding.py in benchmarks/ has
// it. Copies and products are done at once: what a missing wait would read too early, this does not show.
#include "gpu.h"

// ---- ptx.cuh
// -----------------------------------------------------------------------------------------------------------------

namespace ptx {

using u32 = unsigned int;
using u64 = unsigned long long;

inline u32 shared_address(const void* pointer) { return static_cast<u32>(static_cast<const char*>(pointer) - shared); }

inline void barrier_init(u32 barrier, u32 arrivals) {
  emulated::barriers[barrier] = {static_cast<int>(arrivals), static_cast<int>(arrivals), 0};
}
inline void barrier_arrive(u32 barrier) { emulated::barriers.at(barrier).arrive(); }
inline void barrier_wait(u32 barrier, u32 parity) {
  emulated::wait_until([&] { return (emulated::barriers.at(barrier).phase & 1) != static_cast<int>(parity); });
}
inline void fetch(u32 to, const void* from, u32 bytes, u32 barrier) {
  std::memcpy(shared + to, from, bytes);
  barrier_arrive(barrier);
}
inline void barriers_ready() {}

template <int THREADS>
void meet(int barrier) {
  emulated::meetings[barrier].meet(THREADS);
}
inline void show_tensor_cores() {}
inline void few_registers() {}
inline void many_registers() {}

inline void copy16(void* to, const void* from) { std::memcpy(to, from, 16); }
inline void copy4(void* to, const void* from) { std::memcpy(to, from, 4); }
inline void copies_end() {}
template <int PENDING>
void copies_wait() {}

inline u64 descriptor(u32 address) { return address >> 4; }
inline void products_begin() {}
inline void products_end() {}
template <int PENDING>
void products_wait() {}
template <int N>
void settle(float (&)[N]) {}

inline float number(u32 address) {
  _Float16 half;
  std::memcpy(&half, shared + address, 2);
  return half;
}

inline float towards_zero(double x) {
  const float nearest = static_cast<float>(x);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(x) ? std::nextafterf(nearest, 0.0f) : nearest;
}

// Element k of a row of a panel or block: 128 bytes for a row, pieces of 16 exchanged by the address.
inline float element(u64 descriptor, int row, int k) {
  const u32 address = static_cast<u32>(descriptor << 4) + row * 128 + 2 * k;
  return number(address ^ (address >> 7 & 7) << 4);
}

// A thread's part of sum += a b, for its two rows of a, 16 columns each.
inline void add(float (&sum)[32], const float (&a)[2][16], u64 b) {
  const int column = threadIdx.x % 4 * 2;
  for (int i = 0; i < 32; ++i) {
    double total = sum[i];
    for (int k = 0; k < 16; ++k)
      total += static_cast<double>(a[i / 2 % 2][k]) * element(b, i / 4 * 8 + column + i % 2, k);
    sum[i] = towards_zero(total);
  }
}

inline void multiply(float (&sum)[32], u64 a, u64 b) {
  const int row = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  float rows[2][16];
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 16; ++k) rows[half][k] = element(a, row + 8 * half, k);
  add(sum, rows, b);
}

inline u32 pack(float a, float b) {
  const _Float16 both[2] = {static_cast<_Float16>(a), static_cast<_Float16>(b)};
  u32 bits;
  std::memcpy(&bits, both, 4);
  return bits;
}
inline float2 unpack(u32 bits) {
  _Float16 both[2];
  std::memcpy(both, &bits, 4);
  return {static_cast<float>(both[0]), static_cast<float>(both[1])};
}

// The four threads of a row hold two columns each of eight, then of the next eight.
inline void multiply_registers(float (&sum)[32], const u32* a, u64 b) {
  static u32 of_warp[16][32][4];
  u32(&values)[32][4] = of_warp[threadIdx.x / 32];
  const int lane = threadIdx.x % 32;
  std::memcpy(values[lane], a, 16);
  emulated::warp_meets();
  float rows[2][16];
  for (int k = 0; k < 16; k += 2)
    for (int half = 0; half < 2; ++half) {
      const float2 pair = unpack(values[lane / 4 * 4 + k % 8 / 2][k / 8 * 2 + half]);
      rows[half][k] = pair.x;
      rows[half][k + 1] = pair.y;
    }
  emulated::warp_meets();
  add(sum, rows, b);
}

inline float power(float x) { return std::exp2f(x); }
inline float reciprocal(float x) { return 1 / x; }
inline float4 load4(const float* from) {
  float4 value;
  std::memcpy(&value, from, 16);
  return value;
}

}  // namespace ptx
