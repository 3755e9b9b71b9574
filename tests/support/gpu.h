// Emulates a GPU's threads and the built-in functions of CUDA C++ on a CPU.
//
// Thread blocks run one after the other. The threads of a block take turns, each until it waits for others, so every
// run is the same. If all threads wait, the run is abandoned.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

using std::max;
using std::min;

struct Index {
  int x;
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct uint2 {
  unsigned x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

constexpr int MOST_SHARED = 232448;
alignas(1024) char shared[MOST_SHARED];
alignas(16) float numbers[MOST_SHARED / 4];

// ---- threads
// -----------------------------------------------------------------------------------------------------------------

Index threadIdx, blockIdx, gridDim, blockDim;

namespace emulated {

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool ended;
};

std::vector<Thread> threads;
ucontext_t scheduler;
void (*body)(void*);
void* body_arguments;
bool progress;
constexpr size_t STACK = 256 << 10;

inline void take_turns() {
  const int thread = threadIdx.x;
  swapcontext(&threads[thread].context, &scheduler);
  threadIdx.x = thread;
}

template <class Condition>
void wait_until(Condition condition) {
  while (!condition()) take_turns();
}

// A barrier of threads: each goes on when ``count`` threads have arrived.
struct ThreadBarrier {
  int arrived = 0, generation = 0;
  void wait(int count) {
    if (++arrived == count) {
      arrived = 0;
      ++generation;
      progress = true;
      return;
    }
    wait_until([this, now = generation] { return generation != now; });
  }
};
std::map<int, ThreadBarrier> thread_barriers;  // by number: 0 to 15 as in PTX, a warp's own from 16 on

inline void warp_barrier() { thread_barriers[16 + threadIdx.x / 32].wait(32); }

// An mbarrier in shared memory.
struct Barrier {
  int arrivals, missing, phase;
  void arrive() {
    if (--missing > 0) return;
    missing = arrivals;
    ++phase;
    progress = true;
  }
};
std::map<unsigned, Barrier> barriers;  // by address

inline void entry() {
  body(body_arguments);
  threads[threadIdx.x].ended = true;
  progress = true;
  swapcontext(&threads[threadIdx.x].context, &scheduler);
}

// Runs one thread block; returns false if its threads wait for each other and none can go on.
inline bool run_thread_block(int count, void (*what)(void*), void* arguments) {
  body = what;
  body_arguments = arguments;
  thread_barriers.clear();
  barriers.clear();
  std::memset(shared, 0xff, sizeof shared);  // NaN
  threads.resize(count);
  for (Thread& thread : threads) {
    if (!thread.stack) thread.stack.reset(new char[STACK]);
    getcontext(&thread.context);
    thread.context.uc_stack = {thread.stack.get(), 0, STACK};
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, entry, 0);
    thread.ended = false;
  }
  for (bool some = true; some;) {
    some = progress = false;
    for (int thread = 0; thread < count; ++thread) {
      if (threads[thread].ended) continue;
      some = true;
      threadIdx.x = thread;
      swapcontext(&scheduler, &threads[thread].context);
    }
    if (some && !progress) return false;
  }
  return true;
}

template <class... A, size_t... I>
bool launch(void (*kernel)(A...), void** arguments, int blocks, int count, std::index_sequence<I...>) {
  using All = std::pair<void (*)(A...), void**>;
  All all(kernel, arguments);
  gridDim.x = blocks;
  blockDim.x = count;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
    if (!run_thread_block(
            count,
            [](void* data) {
              const All& given = *static_cast<All*>(data);
              given.first(*static_cast<A*>(given.second[I])...);
            },
            &all))
      return false;
  return true;
}

template <class... A>
int launch(void (*kernel)(A...), void** arguments, int blocks, int count) {
  return launch(kernel, arguments, blocks, count, std::index_sequence_for<A...>());
}

}  // namespace emulated

// Launches a kernel with arguments as cuLaunchKernel takes them; returns 0 if the run was abandoned.
#define EMULATED(name)                                                   \
  extern "C" int run_##name(void** arguments, int blocks, int threads) { \
    return emulated::launch(name, arguments, blocks, threads);           \
  }

// ---- built-in functions of CUDA C++
// -------------------------------------------------------------------------------------------------------------

inline void __syncthreads() { emulated::thread_barriers[0].wait(blockDim.x); }
inline void __syncwarp() { emulated::warp_barrier(); }

template <class Value>
Value __shfl_xor_sync(unsigned, Value value, int lanes) {
  static std::map<int, std::vector<Value>> by_warp;
  std::vector<Value>& values = by_warp[threadIdx.x / 32];
  values.resize(32);
  values[threadIdx.x % 32] = value;
  emulated::warp_barrier();
  value = values[(threadIdx.x % 32) ^ lanes];
  emulated::warp_barrier();
  return value;
}

inline unsigned __ballot_sync(unsigned, bool yes) {
  unsigned votes = 0;
  for (int lanes = 0; lanes < 32; ++lanes)
    votes |= __shfl_xor_sync(~0u, yes ? 1u : 0u, lanes) << ((threadIdx.x % 32) ^ lanes);
  return votes;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline long long __double2ll_rn(double value) { return std::llrint(value); }
template <class Value>
void atomicAdd(Value* sum, Value value) {
  *sum += value;
}

template <class Value>
Value __ldg(const Value* from) {
  return *from;
}
inline int __float_as_int(float x) {
  int bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __int_as_float(int bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
