// Multilayer perceptrons (MLPs) on edges for Hopper (sm_90a), with fp32-accurate products on the tensor cores:
// constants and arithmetic.
//
// The arithmetic is that of kernels/triton/mlp_arithmetic.py: each matrix is the sum of two fp16 matrices, its high and
// low parts, a product takes three products of parts (or one), and each row is scaled by a power of two. What differs
// is how the products overlap with everything else; see mlp_kernels.cuh.
//
// NVRTC compiles the .cuh files of this folder as one text, in the order of SOURCES in instances.py. So they include
// nothing.

namespace mlp {

using namespace ptx;

constexpr int SIDE = 64;  // rows and columns of a block of weights, or of a panel of activations
constexpr int PANEL_BYTES = SIDE * SIDE * 2;
constexpr int WARPGROUPS = 2;  // consumers; the producer is one more
constexpr int THREADS = (WARPGROUPS + 1) * 128;
constexpr int VALUES = SIDE * SIDE / 128;  // elements of a 64 by 64 tile that each thread of a warpgroup holds

// Waits for all threads of one warpgroup, and makes what they wrote into shared memory visible to the tensor cores.
__device__ __forceinline__ void warpgroup_barrier(int warpgroup) {
  fence_async_proxy();
  named_barrier_sync<128>(warpgroup + 1);
}

template <int N>
__device__ __forceinline__ void clear(float (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = 0;
}

// Tensor cores round towards zero whenever they add to an accumulator, once for every 16 columns. For terms of either
// sign, each addition takes on average a third of 2^-24 of the sum, from all rows of all layers alike (``unscaled`` in
// mlp_arithmetic.py). The factor by which a result is scaled back compensates for it.
__device__ constexpr int additions(int width) { return (width + 15) / 16; }
template <int PRODUCTS>
__device__ constexpr float rounding_correction(int additions) {
  return 1.0f + static_cast<float>(additions * PRODUCTS / 3.0 / (1 << 24));
}

// The power of two s with 2^14 <= s bound < 2^15, at most 2^64: s times a number up to ``bound`` fits in fp16.
__device__ __forceinline__ float power_of_two(float bound) {
  const int exponent = (__float_as_int(bound) >> 23) & 255;
  return __int_as_float(min(max(268 - exponent, 1), 127 + 64) << 23);
}

__device__ __forceinline__ float inverse_power_of_two(float s) {
  return __int_as_float((254 - ((__float_as_int(s) >> 23) & 255)) << 23);
}

// Two fp32 numbers, each as the sum of two fp16 numbers: high parts in one register, low parts in another.
struct Split {
  u32 hi, lo;
};

__device__ __forceinline__ Split split(float a, float b) {
  const u32 hi = pack_fp16(a, b);
  const float2 rounded = unpack_fp16(hi);
  return {hi, pack_fp16(a - rounded.x, b - rounded.y)};
}

__device__ __forceinline__ void silu_and_derivative(float x, float& h, float& d) {
  const float e = exp2_approx(fminf(x * -1.4426950408889634f, 126.0f)), s = reciprocal_approx(1.0f + e);
  h = x * s;
  d = s + h * (e * s);
}

// Sum over the four threads of a warp that hold a row of an accumulator.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

}  // namespace mlp
