// Perceptrons on edges for Hopper (sm_90a), with fp32-accurate products on the tensor cores.
//
// Arithmetic and scales are those of kernels/triton/mlp_arithmetic.py: each matrix in two fp16 halves, three
// products of them (or one), a power of two for each row. What differs is how the products are kept in flight.
//
// Work: a program has two warpgroups that compute, each on 64 rows of its own (one, ``active``, when there are few
// rows), and a thread that fetches. All weights of a kernel, in the order in which they are multiplied, are one stream
// of blocks of 64 by 64, which that thread copies into a ring in shared memory, as far ahead as there is room. The
// computing warpgroups wait for a block's arrival, but neither for each other nor for the products of the block before:
// while one is at its nonlinearities, the other has the tensor cores.
//
// Blocks are stored as the tensor cores read them: [n, k], 128 bytes for each n, 16-byte pieces exchanged by n (the
// 128-byte swizzle of the PTX manual), the upper half before the lower one. So are the tiles of activations, called
// panels: 64 rows of 64 columns. A sum over blocks stays in registers; it becomes the next product's left operand
// there, since the tensor cores distribute both over threads in the same way.
//
// Of every 16 columns of a result, a thread holds columns 2 q, 2 q + 1, 8 + 2 q and 9 + 2 q of two rows. The blocks'
// rows [n] are exchanged, so that what it has there are columns 4 q to 4 q + 3 of the matrix (``column_of``): 16 bytes
// to load or store. Where such a result is the next product's left operand, the columns [k] of those blocks are
// exchanged as well.
//
// NVRTC compiles this file at export, after ptx.cuh and with one line that names an instance; it includes nothing for
// that reason.

namespace perceptron {

using namespace ptx;

constexpr int SIDE = 64;
constexpr int PANEL_BYTES = SIDE * SIDE * 2;
constexpr int WARPGROUPS = 2;
constexpr int THREADS = (WARPGROUPS + 1) * 128;
constexpr int VALUES = SIDE * SIDE / 128;  // of a 64 by 64 tile for each thread

// All threads of one warpgroup have come here, and what they wrote into shared memory can be seen by the tensor cores.
__device__ __forceinline__ void warpgroup_barrier(int warpgroup) {
  show_tensor_cores();
  meet<128>(warpgroup + 1);
}

template <int N>
__device__ __forceinline__ void clear(float (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = 0;
}

// ---- numbers
// -----------------------------------------------------------------------------------------------------------------

// The tensor cores round towards zero whenever they add to a sum. On average over numbers of either sign that takes a
// third of 2^-24 of it each time, from every row of every layer alike (``unscaled`` in mlp.py). What a result is scaled
// by makes up for it.
__device__ constexpr int additions(int width) { return (width + 15) / 16; }
template <int PRODUCTS>
__device__ constexpr float restored(int additions) {
  return 1.0f + static_cast<float>(additions * PRODUCTS / 3.0 / (1 << 24));
}

__device__ __forceinline__ float power_of_two(float bound) {
  const int exponent = (__float_as_int(bound) >> 23) & 255;
  return __int_as_float(min(max(268 - exponent, 1), 127 + 64) << 23);
}

__device__ __forceinline__ float inverse_power_of_two(float s) {
  return __int_as_float((254 - ((__float_as_int(s) >> 23) & 255)) << 23);
}

struct Halves {
  u32 hi, lo;
};

__device__ __forceinline__ Halves halves(float a, float b) {
  const u32 hi = pack(a, b);
  const float2 taken = unpack(hi);
  return {hi, pack(a - taken.x, b - taken.y)};
}

__device__ __forceinline__ void silu_and_derivative(float x, float& h, float& d) {
  const float e = power(fminf(x * -1.4426950408889634f, 126.0f)), s = reciprocal(1.0f + e);
  h = x * s;
  d = s + h * (e * s);
}

// Sum over the four threads that hold a row.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// ---- rows of the input
// -------------------------------------------------------------------------------------------------------

// Blocks that a width takes.
__device__ constexpr int blocks(int width) { return (width + SIDE - 1) / SIDE; }

// Widths of an input's parts, multiples of 8; each part begins a panel of its own. 0: not there.
template <int K0, int K1 = 0, int K2 = 0, int K3 = 0>
struct Parts {
  static constexpr int PANELS = blocks(K0) + blocks(K1) + blocks(K2) + blocks(K3);
  static constexpr int ADDITIONS = additions(K0) + additions(K1) + additions(K2) + additions(K3);
  __device__ static constexpr int width(int part) { return part == 0 ? K0 : part == 1 ? K1 : part == 2 ? K2 : K3; }
  __device__ static constexpr int first(int part) {
    return (part > 0 ? blocks(K0) : 0) + (part > 1 ? blocks(K1) : 0) + (part > 2 ? blocks(K2) : 0);
  }
  __device__ static constexpr int part(int panel) {
    return panel < first(1) ? 0 : panel < first(2) ? 1 : panel < first(3) ? 2 : 3;
  }
  __device__ static constexpr int column(int panel) { return (panel - first(part(panel))) * SIDE; }
};

struct Pointers {
  float* part[4];
};

// What a thread knows of its two rows, lane / 4 and lane / 4 + 8 of its warp's 16.
struct Rows {
  float norm[2], linear[2];
};

// Rows of the input as scaled halves in shared memory: panel q at ``tile`` + q PANEL_BYTES, their lower halves after
// all of them.
//
// Two rows for each instruction of a warp, 16 bytes for each thread. Also their norms and, with ``r``, their products
// with it.
template <class P, int PRODUCTS, bool LINEAR>
__device__ __forceinline__ Rows load_rows(const Pointers& x, const float* r, long long row0, long long count,
                                          char* tile, float2* known) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, column = lane % 16 * 4;
  float4 values[8][P::PANELS];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const long long row = row0 + warp * 16 + 2 * i + lane / 16;
#pragma unroll
    for (int q = 0; q < P::PANELS; ++q) {
      const int width = P::width(P::part(q)), at = P::column(q) + column;
      const float* from = x.part[P::part(q)] + row * width + at;
      values[i][q] = row < count && at < width ? __ldg(reinterpret_cast<const float4*>(from)) : make_float4(0, 0, 0, 0);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int row = warp * 16 + 2 * i + lane / 16;
    float square = 0, linear = 0;
#pragma unroll
    for (int q = 0; q < P::PANELS; ++q) {
      const float4 a = values[i][q];
      square += a.x * a.x + a.y * a.y + a.z * a.z + a.w * a.w;
      if (LINEAR) {
        const float4 b = load4(r + q * SIDE + column);
        linear += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
      }
    }
#pragma unroll
    for (int lanes = 8; lanes > 0; lanes /= 2) {
      square += __shfl_xor_sync(0xffffffffu, square, lanes);
      if (LINEAR) linear += __shfl_xor_sync(0xffffffffu, linear, lanes);
    }
    const float norm = sqrtf(square), scale = power_of_two(norm);
    if (lane % 16 == 0) known[row] = make_float2(norm, linear);
    const int at = row * 128 + ((column / 8) ^ (row % 8)) * 16 + column % 8 * 2;
#pragma unroll
    for (int q = 0; q < P::PANELS; ++q) {
      const float4 a = values[i][q];
      const Halves left = halves(a.x * scale, a.y * scale), right = halves(a.z * scale, a.w * scale);
      *reinterpret_cast<uint2*>(tile + q * PANEL_BYTES + at) = make_uint2(left.hi, right.hi);
      if (PRODUCTS == 3)
        *reinterpret_cast<uint2*>(tile + (P::PANELS + q) * PANEL_BYTES + at) = make_uint2(left.lo, right.lo);
    }
  }
  __syncwarp();
  Rows rows;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float2 both = known[warp * 16 + lane / 4 + 8 * half];
    rows.norm[half] = both.x;
    rows.linear[half] = both.y;
  }
  return rows;
}

// ---- the stream of weights
// ---------------------------------------------------------------------------------------------------

template <int PRODUCTS, int STAGES>
struct Ring {
  static constexpr int BYTES = (PRODUCTS == 3 ? 2 : 1) * PANEL_BYTES;
  u32 blocks, full, empty;  // addresses in shared memory
  int stage = 0, held = -1;
  u32 phase = 0;

  __device__ __forceinline__ Ring(u32 blocks, u32 barriers)
      : blocks(blocks), full(barriers), empty(barriers + 8 * STAGES) {}

  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }

  // The whole stream, once for each tile of this program; one thread.
  __device__ __forceinline__ void fetch_all(const char* stream, int length, long long tiles) {
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      for (int block = 0; block < length; ++block) {
        barrier_wait(empty + 8 * stage, phase ^ 1);
        fetch(blocks + stage * BYTES, stream + static_cast<long long>(block) * BYTES, BYTES, full + 8 * stage);
        advance();
      }
    }
  }

  // The next block, when it is there.
  __device__ __forceinline__ u64 next() {
    barrier_wait(full + 8 * stage, phase);
    products_begin();
    return descriptor(blocks + stage * BYTES);
  }

  __device__ __forceinline__ void release() {
    if (held >= 0 && threadIdx.x % 32 == 0) barrier_arrive(empty + 8 * held);
  }

  // Its products are under way; those of the block before are done.
  __device__ __forceinline__ void issued() {
    products_end();
    products_wait<1>();
    release();
    held = stage;
    advance();
  }

  // All products are done.
  __device__ __forceinline__ void finish() {
    products_wait<0>();
    release();
    held = -1;
  }

  // sum += panel . next block, for an operand in shared memory
  __device__ __forceinline__ void add(float (&sum)[VALUES], u32 panel, int lower) {
    const u64 b = next(), a = descriptor(panel);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if constexpr (PRODUCTS == 3) {
        multiply(sum, descriptor(panel + lower) + 2 * k, b + 2 * k);
        multiply(sum, a + 2 * k, b + (PANEL_BYTES >> 4) + 2 * k);
        multiply(sum, a + 2 * k, b + 2 * k);
      } else {
        multiply(sum, a + 2 * k, b + 2 * k);
      }
    }
    issued();
  }

  // sum += operand . next block, for an operand in registers
  __device__ __forceinline__ void add_registers(float (&sum)[VALUES], const u32* hi, const u32* lo) {
    const u64 b = next();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if constexpr (PRODUCTS == 3) {
        multiply_registers(sum, lo + 4 * k, b + 2 * k);
        multiply_registers(sum, hi + 4 * k, b + (PANEL_BYTES >> 4) + 2 * k);
        multiply_registers(sum, hi + 4 * k, b + 2 * k);
      } else {
        multiply_registers(sum, hi + 4 * k, b + 2 * k);
      }
    }
    issued();
  }
};

// ---- rows of a result
// --------------------------------------------------------------------------------------------------------

// silu' lies in (-0.1, 1.1): halves have the accuracy of one product.
template <int PRODUCTS>
struct DerivativeOf {
  using Type = float;
};
template <>
struct DerivativeOf<1> {
  using Type = unsigned short;
};

__device__ __forceinline__ void store_four(float* to, float4 x) { *reinterpret_cast<float4*>(to) = x; }
__device__ __forceinline__ void store_four(unsigned short* to, float4 x) {
  *reinterpret_cast<uint2*>(to) = make_uint2(pack(x.x, x.y), pack(x.z, x.w));
}
__device__ __forceinline__ float4 load_four(const float* from) { return __ldg(reinterpret_cast<const float4*>(from)); }
__device__ __forceinline__ float4 load_four(const unsigned short* from) {
  const uint2 both = __ldg(reinterpret_cast<const uint2*>(from));
  const float2 left = unpack(both.x), right = unpack(both.y);
  return make_float4(left.x, left.y, right.x, right.y);
}

// Of a 64 by 64 tile in registers, a thread's four values from ``FOURS`` places on: one row, four columns that are next
// to each other.
constexpr int FOURS = VALUES / 4;
__device__ __forceinline__ constexpr int half_of(int four) { return four % 2; }
__device__ __forceinline__ constexpr int place_of(int four, int i) {
  return four / 2 * 8 + four % 2 * 2 + i / 2 * 4 + i % 2;
}
__device__ __forceinline__ int column_of(int four) { return four / 2 * 16 + threadIdx.x % 4 * 4; }

__device__ __forceinline__ float4 four_of(const float (&values)[VALUES], int four) {
  return make_float4(values[place_of(four, 0)], values[place_of(four, 1)], values[place_of(four, 2)],
                     values[place_of(four, 3)]);
}

__device__ __forceinline__ void set_four(float (&values)[VALUES], int four, float4 x) {
  values[place_of(four, 0)] = x.x;
  values[place_of(four, 1)] = x.y;
  values[place_of(four, 2)] = x.z;
  values[place_of(four, 3)] = x.w;
}

// A 64 by 64 tile of an array of ``width`` columns, a multiple of 8, as its threads hold it, from ``column`` on; what
// lies outside [count, width] is not there.
template <class T>
__device__ __forceinline__ void store_tile(T* out, int width, int column, long long row0, long long count,
                                           const float (&values)[VALUES]) {
  const long long row = row0 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  T* to = out + row * width + column;
#pragma unroll
  for (int four = 0; four < FOURS; ++four)
    if (row + 8 * half_of(four) < count && (width % SIDE == 0 || column + column_of(four) < width))
      store_four(to + 8 * half_of(four) * width + column_of(four), four_of(values, four));
}

template <class T>
__device__ __forceinline__ void load_tile(const T* x, int width, int column, long long row0, long long count,
                                          float (&values)[VALUES]) {
  const long long row = row0 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  const T* from = x + row * width + column;
#pragma unroll
  for (int four = 0; four < FOURS; ++four) {
    const bool there = row + 8 * half_of(four) < count && (width % SIDE == 0 || column + column_of(four) < width);
    set_four(values, four,
             there ? load_four(from + 8 * half_of(four) * width + column_of(four)) : make_float4(0, 0, 0, 0));
  }
}

// ---- kernels
// -----------------------------------------------------------------------------------------------------------------

// Widths of a perceptron: its input, its two hidden layers and what reads the second; multiples of 8. ``PANELS``: how
// many the largest operand in shared memory has.
template <class P, int INNER_, int OUTER_, int LAST_, int PANELS, int PRODUCTS_, int STAGES_>
struct Shape {
  using Input = P;
  using Last = Parts<LAST_>;
  static constexpr int INNER = INNER_, OUTER = OUTER_, LAST = LAST_, PRODUCTS = PRODUCTS_, STAGES = STAGES_;
  static constexpr int CHUNKS = blocks(INNER), COLUMNS = blocks(OUTER);
  // of the results of products with as many rows as the input has columns, or one of the layers, or what reads the
  // second
  static constexpr float OF_INPUT = restored<PRODUCTS>(P::ADDITIONS), OF_INNER = restored<PRODUCTS>(additions(INNER)),
                         OF_OUTER = restored<PRODUCTS>(additions(OUTER)), OF_LAST = restored<PRODUCTS>(additions(LAST));
  static constexpr int TILE_BYTES = PANELS * Ring<PRODUCTS, STAGES>::BYTES;
  static constexpr int RING_BYTES = STAGES * Ring<PRODUCTS, STAGES>::BYTES;
  static constexpr int SHARED_BYTES = WARPGROUPS * TILE_BYTES + RING_BYTES + WARPGROUPS * SIDE * 8 + 16 * STAGES;
};

template <class S>
struct Program {
  char* tile;     // of this warpgroup
  float2* known;  // of its rows
  u32 ring, barriers;

  __device__ __forceinline__ Program(char* shared, int warpgroup) {
    tile = shared + S::RING_BYTES + warpgroup * S::TILE_BYTES;
    char* rest = shared + S::RING_BYTES + WARPGROUPS * S::TILE_BYTES;
    known = reinterpret_cast<float2*>(rest) + warpgroup * SIDE;
    ring = shared_address(shared);
    barriers = shared_address(rest + WARPGROUPS * SIDE * 8);
  }

  __device__ __forceinline__ void start(int active) const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < S::STAGES; ++i) {
        barrier_init(barriers + 8 * i, 1);
        barrier_init(barriers + 8 * (S::STAGES + i), active * 4);
      }
      barriers_ready();
    }
    __syncthreads();
  }
};

template <class S>
using RingOf = Ring<S::PRODUCTS, S::STAGES>;

// Calls body(ring, program, warpgroup, row0) for each tile of 64 rows, in the warpgroups that compute; beside them, one
// thread fetches the ``length`` blocks of the stream for each. All threads of a warpgroup end a tile together: the next
// one overwrites its memory.
template <class S, class Body>
__device__ __forceinline__ void for_each_tile(const char* stream, int length, long long count, int active, char* shared,
                                              Body body) {
  const int warpgroup = threadIdx.x / 128;
  const int rows_each = active * SIDE;
  const long long tiles = (count + rows_each - 1) / rows_each;
  Program<S> program(shared, warpgroup % WARPGROUPS);
  RingOf<S> ring(program.ring, program.barriers);
  program.start(active);
  if (warpgroup == WARPGROUPS) {
    few_registers();
    if (threadIdx.x % 128 == 0) ring.fetch_all(stream, length, tiles);
    return;
  }
  many_registers();
  if (warpgroup >= active) return;
  for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    body(ring, program, warpgroup, tile * rows_each + warpgroup * SIDE);
    warpgroup_barrier(warpgroup);
  }
}

// (g * d1) W1^T of rows g [64, OUTER] in registers, chunk by chunk: ``derivative(c, d)`` gives silu' of the hidden
// columns.
template <class S, class RingType, class Derivative>
__device__ __forceinline__ void input_gradients(float (&g)[S::COLUMNS][VALUES], float (&dx)[S::Input::PANELS][VALUES],
                                                RingType& ring, const Program<S>& program, int warpgroup,
                                                const float* w1_info, const float* w2_info, Derivative derivative) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  float norm[2] = {0, 0}, unscale2[2], unscale1[2];
#pragma unroll
  for (int n = 0; n < S::COLUMNS; ++n)
#pragma unroll
    for (int i = 0; i < VALUES; ++i) norm[i / 2 % 2] += g[n][i] * g[n][i];
  float scale2[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    norm[half] = sqrtf(quad_sum(norm[half]));
    scale2[half] = power_of_two(norm[half]);
    const float scale1 = power_of_two(norm[half] * w2_info[2] * 1.1f);
    unscale2[half] = inverse_power_of_two(scale2[half]) * (w2_info[0] * S::OF_OUTER) * scale1;
    unscale1[half] = inverse_power_of_two(scale1) * (w1_info[0] * S::OF_INNER);
  }
  // what the tile held before is not needed any more, by any thread
  warpgroup_barrier(warpgroup);
#pragma unroll
  for (int n = 0; n < S::COLUMNS; ++n)
#pragma unroll
    for (int i = 0; i < VALUES; i += 2) {
      const int half = i / 2 % 2, row = warp * 16 + lane / 4 + 8 * half;
      const Halves both = halves(g[n][i] * scale2[half], g[n][i + 1] * scale2[half]);
      char* to = program.tile + n * PANEL_BYTES + row * 128 + ((i / 4) ^ (row % 8)) * 16 + lane % 4 * 4;
      *reinterpret_cast<u32*>(to) = both.hi;
      if (S::PRODUCTS == 3) *reinterpret_cast<u32*>(to + S::COLUMNS * PANEL_BYTES) = both.lo;
    }
  warpgroup_barrier(warpgroup);
  const u32 tile = shared_address(program.tile);
#pragma unroll
  for (int q = 0; q < S::Input::PANELS; ++q) clear(dx[q]);
#pragma unroll 1
  for (int c = 0; c < S::CHUNKS; ++c) {
    float t[VALUES], d[VALUES];
    clear(t);

#pragma unroll
    for (int n = 0; n < S::COLUMNS; ++n) ring.add(t, tile + n * PANEL_BYTES, S::COLUMNS * PANEL_BYTES);
    derivative(c, d);  // on its way while the products are
    ring.finish();
    settle(t);
    u32 hi[VALUES / 2], lo[VALUES / 2];
#pragma unroll
    for (int i = 0; i < VALUES; i += 2) {
      const float unscale = unscale2[i / 2 % 2];
      const Halves both = halves(t[i] * unscale * d[i], t[i + 1] * unscale * d[i + 1]);
      hi[i / 2] = both.hi;
      lo[i / 2] = both.lo;
    }
#pragma unroll
    for (int q = 0; q < S::Input::PANELS; ++q) ring.add_registers(dx[q], hi, lo);
    ring.finish();
  }
#pragma unroll
  for (int q = 0; q < S::Input::PANELS; ++q) {
    settle(dx[q]);
#pragma unroll
    for (int i = 0; i < VALUES; ++i) dx[q][i] *= unscale1[i / 2 % 2];
  }
}

// silu(x W1) W2 of 64 rows; ``keep(c, d)`` takes silu'(x W1) of the hidden columns.
template <class S, class RingType, class Keep>
__device__ __forceinline__ void second_sum(float (&total)[S::COLUMNS][VALUES], RingType& ring,
                                           const Program<S>& program, const Rows& rows, const float* w1_info,
                                           const float* w2_info, Keep keep) {
  float unscale1[2], scale2[2], unscale2[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    unscale1[half] = inverse_power_of_two(power_of_two(rows.norm[half])) * (w1_info[0] * S::OF_INPUT);
    scale2[half] = power_of_two(rows.norm[half] * w1_info[1]);
    unscale2[half] = inverse_power_of_two(scale2[half]) * (w2_info[0] * S::OF_INNER);
  }
  const u32 tile = shared_address(program.tile);
#pragma unroll
  for (int n = 0; n < S::COLUMNS; ++n) clear(total[n]);
#pragma unroll 1
  for (int c = 0; c < S::CHUNKS; ++c) {
    float p[VALUES];
    clear(p);
#pragma unroll
    for (int q = 0; q < S::Input::PANELS; ++q) ring.add(p, tile + q * PANEL_BYTES, S::Input::PANELS * PANEL_BYTES);
    ring.finish();
    settle(p);
    u32 hi[VALUES / 2], lo[VALUES / 2];
    float d[VALUES];
#pragma unroll
    for (int i = 0; i < VALUES; i += 2) {
      const int half = i / 2 % 2;
      float h0, h1;
      silu_and_derivative(p[i] * unscale1[half], h0, d[i]);
      silu_and_derivative(p[i + 1] * unscale1[half], h1, d[i + 1]);
      const Halves both = halves(h0 * scale2[half], h1 * scale2[half]);
      hi[i / 2] = both.hi;
      lo[i / 2] = both.lo;
    }
    keep(c, d);
#pragma unroll
    for (int n = 0; n < S::COLUMNS; ++n) ring.add_registers(total[n], hi, lo);
    ring.finish();
  }
#pragma unroll
  for (int n = 0; n < S::COLUMNS; ++n) {
    settle(total[n]);
#pragma unroll
    for (int i = 0; i < VALUES; ++i) total[n][i] *= unscale2[i / 2 % 2];
  }
}

template <class S>
__device__ __forceinline__ void store_parts(const Pointers& dx, long long row0, long long count,
                                            const float (&values)[S::Input::PANELS][VALUES]) {
#pragma unroll
  for (int q = 0; q < S::Input::PANELS; ++q) {
    const int part = S::Input::part(q);
    store_tile(dx.part[part], S::Input::width(part), S::Input::column(q), row0, count, values[q]);
  }
}

// energy = v silu(silu(x W1) W2) + r x and its gradient by x, both times ``factor`` if there is one.
//
// ``stream``: the blocks of W1 and W2, then those of W2^T and W1^T, each pair chunk by chunk of the hidden columns.
// ``scratch`` holds silu'(x W1) for each program, [gridDim.x, 2, INNER, 64].
template <class S, bool SCALED>
__device__ __forceinline__ void energy(const Pointers& x, const char* stream, const float* w1_info,
                                       const float* w2_info, const float* v, const float* r, const float* factor,
                                       float* result, const Pointers& dx, float* scratch, long long count, int active,
                                       char* shared) {
  const int length = 2 * S::CHUNKS * (S::Input::PANELS + S::COLUMNS);
  for_each_tile<S>(
      stream, length, count, active, shared,
      [&](RingOf<S>& ring, const Program<S>& program, int warpgroup, long long row0) {
        const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
        float* mine = scratch +
                      (static_cast<long long>(blockIdx.x) * WARPGROUPS + warpgroup) * S::CHUNKS * SIDE * SIDE +
                      thread * 4;
        const Rows rows =
            load_rows<typename S::Input, S::PRODUCTS, true>(x, r, row0, count, program.tile, program.known);
        warpgroup_barrier(warpgroup);
        float total[S::COLUMNS][VALUES];
        second_sum<S>(total, ring, program, rows, w1_info, w2_info, [&](int c, const float (&d)[VALUES]) {
#pragma unroll
          for (int i = 0; i < VALUES; i += 4)
            *reinterpret_cast<float4*>(mine + c * SIDE * SIDE + i * 128) =
                make_float4(d[i], d[i + 1], d[i + 2], d[i + 3]);
        });
        float sum[2] = {0, 0}, scale[2] = {1, 1};
#pragma unroll
        for (int n = 0; n < S::COLUMNS; ++n)
#pragma unroll
          for (int four = 0; four < FOURS; ++four) {
            const float4 weights = load4(v + n * SIDE + column_of(four));
            const float weight[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              float h, d, &value = total[n][place_of(four, i)];
              silu_and_derivative(value, h, d);
              sum[half_of(four)] += h * weight[i];
              value = d * weight[i];
            }
          }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const long long row = row0 + warp * 16 + lane / 4 + 8 * half;
          const float whole_sum = quad_sum(sum[half]) + rows.linear[half];
          if (row < count) {
            if (SCALED) scale[half] = __ldg(factor + row);
            if (lane % 4 == 0) result[row] = whole_sum * scale[half];
          }
        }
        float gradient[S::Input::PANELS][VALUES];
        input_gradients<S>(total, gradient, ring, program, warpgroup, w1_info, w2_info, [&](int c, float (&d)[VALUES]) {
#pragma unroll
          for (int i = 0; i < VALUES; i += 4) {
            const float4 four = *reinterpret_cast<const float4*>(mine + c * SIDE * SIDE + i * 128);
            d[i] = four.x, d[i + 1] = four.y, d[i + 2] = four.z, d[i + 3] = four.w;
          }
        });
#pragma unroll
        for (int q = 0; q < S::Input::PANELS; ++q) {
#pragma unroll
          for (int four = 0; four < FOURS; ++four) {
            const float4 constant = load4(r + q * SIDE + column_of(four));
            const float add[4] = {constant.x, constant.y, constant.z, constant.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              float& value = gradient[q][place_of(four, i)];
              value = (value + add[i]) * scale[half_of(four)];
            }
          }
        }
        store_parts<S>(dx, row0, count, gradient);
      });
}

// out = silu(p2), p2 = silu(p1) W2, p1 = x W1; d1 = silu'(p1), d2 = silu'(p2); y = out W3, if there is a W3.
//
// ``stream``: the blocks of W1 and W2, chunk by chunk of the hidden columns, then those of W3, column by column.
template <class S, class D = typename DerivativeOf<S::PRODUCTS>::Type>
__device__ __forceinline__ void hidden(const Pointers& x, const char* stream, const float* w1_info,
                                       const float* w2_info, const float* w3_info, float* out, D* d1, D* d2, float* y,
                                       long long count, int active, char* shared) {
  const int length = S::CHUNKS * (S::Input::PANELS + S::COLUMNS) + S::COLUMNS * S::Last::PANELS;
  for_each_tile<S>(stream, length, count, active, shared,
                   [&](RingOf<S>& ring, const Program<S>& program, int warpgroup, long long row0) {
                     const Rows rows = load_rows<typename S::Input, S::PRODUCTS, false>(x, nullptr, row0, count,
                                                                                        program.tile, program.known);
                     warpgroup_barrier(warpgroup);
                     float total[S::COLUMNS][VALUES];
                     second_sum<S>(total, ring, program, rows, w1_info, w2_info, [&](int c, const float (&d)[VALUES]) {
                       store_tile(d1, S::INNER, c * SIDE, row0, count, d);
                     });
                     float norm[2] = {0, 0}, scale[2], unscale[2];
#pragma unroll
                     for (int n = 0; n < S::COLUMNS; ++n) {
                       float d[VALUES];
#pragma unroll
                       for (int i = 0; i < VALUES; ++i) {
                         silu_and_derivative(total[n][i], total[n][i], d[i]);
                         norm[i / 2 % 2] += total[n][i] * total[n][i];
                       }
                       store_tile(d2, S::OUTER, n * SIDE, row0, count, d);
                       store_tile(out, S::OUTER, n * SIDE, row0, count, total[n]);
                     }
#pragma unroll
                     for (int half = 0; half < 2; ++half) {
                       scale[half] = power_of_two(sqrtf(quad_sum(norm[half])));
                       unscale[half] = inverse_power_of_two(scale[half]) * (w3_info[0] * S::OF_OUTER);
                     }
                     u32 hi[S::COLUMNS][VALUES / 2], lo[S::COLUMNS][VALUES / 2];
#pragma unroll
                     for (int n = 0; n < S::COLUMNS; ++n)
#pragma unroll
                       for (int i = 0; i < VALUES; i += 2) {
                         const Halves both = halves(total[n][i] * scale[i / 2 % 2], total[n][i + 1] * scale[i / 2 % 2]);
                         hi[n][i / 2] = both.hi;
                         lo[n][i / 2] = both.lo;
                       }
#pragma unroll 1
                     for (int m = 0; m < S::Last::PANELS; ++m) {
                       float sum[VALUES];
                       clear(sum);
#pragma unroll
                       for (int n = 0; n < S::COLUMNS; ++n) ring.add_registers(sum, hi[n], lo[n]);
                       ring.finish();
                       settle(sum);
#pragma unroll
                       for (int i = 0; i < VALUES; ++i) sum[i] *= unscale[i / 2 % 2];
                       store_tile(y, S::LAST, m * SIDE, row0, count, sum);
                     }
                   });
}

// dx = ((g2 * d2) W2^T * d1) W1^T, g2 = g + dy W3^T (or g where nothing reads the hidden layer).
//
// ``stream``: the blocks of W3^T, row by row, then those of W2^T and W1^T, chunk by chunk of the hidden columns.
template <class S, class D = typename DerivativeOf<S::PRODUCTS>::Type>
__device__ __forceinline__ void hidden_backward(const float* g, float* dy, const D* d1, const D* d2, const char* stream,
                                                const float* w1_info, const float* w2_info, const float* w3_info,
                                                const Pointers& dx, long long count, int active, char* shared) {
  using Last = typename S::Last;
  const int length = S::CHUNKS * (S::Input::PANELS + S::COLUMNS) + S::COLUMNS * Last::PANELS;
  for_each_tile<S>(
      stream, length, count, active, shared,
      [&](RingOf<S>& ring, const Program<S>& program, int warpgroup, long long row0) {
        float total[S::COLUMNS][VALUES], unscale[2] = {0, 0};
#pragma unroll
        for (int n = 0; n < S::COLUMNS; ++n) clear(total[n]);
        if constexpr (Last::PANELS > 0) {
          const Rows rows =
              load_rows<Last, S::PRODUCTS, false>(Pointers{{dy}}, nullptr, row0, count, program.tile, program.known);
          warpgroup_barrier(warpgroup);
          const u32 panels = shared_address(program.tile);
#pragma unroll
          for (int q = 0; q < Last::PANELS; ++q)
#pragma unroll
            for (int n = 0; n < S::COLUMNS; ++n)
              ring.add(total[n], panels + q * PANEL_BYTES, Last::PANELS * PANEL_BYTES);
          ring.finish();
#pragma unroll
          for (int half = 0; half < 2; ++half)
            unscale[half] = inverse_power_of_two(power_of_two(rows.norm[half])) * (w3_info[0] * S::OF_LAST);
        }
#pragma unroll
        for (int n = 0; n < S::COLUMNS; ++n) {
          float gradient[VALUES], d[VALUES];
          load_tile(g, S::OUTER, n * SIDE, row0, count, gradient);
          load_tile(d2, S::OUTER, n * SIDE, row0, count, d);
          settle(total[n]);
#pragma unroll
          for (int i = 0; i < VALUES; ++i) total[n][i] = (total[n][i] * unscale[i / 2 % 2] + gradient[i]) * d[i];
        }
        float gradient[S::Input::PANELS][VALUES];
        input_gradients<S>(total, gradient, ring, program, warpgroup, w1_info, w2_info,
                           [&](int c, float (&d)[VALUES]) { load_tile(d1, S::INNER, c * SIDE, row0, count, d); });
        store_parts<S>(dx, row0, count, gradient);
      });
}

}  // namespace perceptron

// ---- instances
// ---------------------------------------------------------------------------------------------------------------

#define NQ_KERNEL(name) extern "C" __global__ void __launch_bounds__(perceptron::THREADS, 1) name
#define NQ_SHARED(bytes, ...)                                     \
  extern __shared__ __align__(1024) char shared[];                \
  using S = perceptron::Shape<__VA_ARGS__>;                       \
  using D = typename perceptron::DerivativeOf<S::PRODUCTS>::Type; \
  static_assert(S::SHARED_BYTES == bytes, "the launch asks for as much")

#define NQ_ENERGY(name, bytes, scaled, ...)                                                                      \
  NQ_KERNEL(name)(perceptron::Pointers x, perceptron::Pointers dx, const char* stream, const float* w1_info,     \
                  const float* w2_info, const float* v, const float* r, const float* factor, float* result,      \
                  float* scratch, long long count, int active) {                                                 \
    NQ_SHARED(bytes, __VA_ARGS__);                                                                               \
    perceptron::energy<S, scaled>(x, stream, w1_info, w2_info, v, r, factor, result, dx, scratch, count, active, \
                                  shared);                                                                       \
  }

#define NQ_HIDDEN(name, bytes, ...)                                                                               \
  NQ_KERNEL(name)(perceptron::Pointers x, const char* stream, const float* w1_info, const float* w2_info,         \
                  const float* w3_info, float* out, void* d1, void* d2, float* y, long long count, int active) {  \
    NQ_SHARED(bytes, __VA_ARGS__);                                                                                \
    perceptron::hidden<S>(x, stream, w1_info, w2_info, w3_info, out, static_cast<D*>(d1), static_cast<D*>(d2), y, \
                          count, active, shared);                                                                 \
  }

#define NQ_HIDDEN_BACKWARD(name, bytes, ...)                                                                     \
  NQ_KERNEL(name)(perceptron::Pointers dx, const float* g, float* dy, const void* d1, const void* d2,            \
                  const char* stream, const float* w1_info, const float* w2_info, const float* w3_info,          \
                  long long count, int active) {                                                                 \
    NQ_SHARED(bytes, __VA_ARGS__);                                                                               \
    perceptron::hidden_backward<S>(g, dy, static_cast<const D*>(d1), static_cast<const D*>(d2), stream, w1_info, \
                                   w2_info, w3_info, dx, count, active, shared);                                 \
  }
