// Two layers of an MLP and their gradient for tiles of 64 rows: what the kernels of mlp_kernels.cuh share.

namespace mlp {

// Sizes of a kernel: the widths of the input's parts P, of the two hidden layers and of the matrix that reads the
// second (0: none), all multiples of 8; PANELS is the number of panels of the largest operand in shared memory.
template <class P, int INNER_, int OUTER_, int LAST_, int PANELS, int PRODUCTS_, int STAGES_>
struct Shape {
  using Input = P;
  using Last = Parts<LAST_>;
  static constexpr int INNER = INNER_, OUTER = OUTER_, LAST = LAST_, PRODUCTS = PRODUCTS_, STAGES = STAGES_;
  static constexpr int CHUNKS = num_blocks(INNER), COLUMNS = num_blocks(OUTER);
  // compensation of the rounding in products over the columns of the input, of a layer, or of the last matrix
  static constexpr float INPUT_CORRECTION = rounding_correction<PRODUCTS>(P::ADDITIONS),
                         INNER_CORRECTION = rounding_correction<PRODUCTS>(additions(INNER)),
                         OUTER_CORRECTION = rounding_correction<PRODUCTS>(additions(OUTER)),
                         LAST_CORRECTION = rounding_correction<PRODUCTS>(additions(LAST));
  static constexpr int TILE_BYTES = PANELS * Ring<PRODUCTS, STAGES>::BYTES;
  static constexpr int RING_BYTES = STAGES * Ring<PRODUCTS, STAGES>::BYTES;
  static constexpr int SHARED_BYTES = WARPGROUPS * TILE_BYTES + RING_BYTES + WARPGROUPS * SIDE * 8 + 16 * STAGES;
};

// The shared memory of a thread block as one warpgroup sees it.
template <class S>
struct SharedMemory {
  char* tile;        // operand of this warpgroup
  float2* row_sums;  // norm and linear term of its rows
  u32 ring, barriers;

  __device__ __forceinline__ SharedMemory(char* shared, int warpgroup) {
    tile = shared + S::RING_BYTES + warpgroup * S::TILE_BYTES;
    char* rest = shared + S::RING_BYTES + WARPGROUPS * S::TILE_BYTES;
    row_sums = reinterpret_cast<float2*>(rest) + warpgroup * SIDE;
    ring = shared_address(shared);
    barriers = shared_address(rest + WARPGROUPS * SIDE * 8);
  }

  __device__ __forceinline__ void start(int active) const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < S::STAGES; ++i) {
        mbarrier_init(barriers + 8 * i, 1);
        mbarrier_init(barriers + 8 * (S::STAGES + i), active * 4);
      }
      fence_mbarrier_init();
    }
    __syncthreads();
  }
};

template <class S>
using RingFor = Ring<S::PRODUCTS, S::STAGES>;

// Calls body(ring, memory, warpgroup, row0) for each tile of 64 rows, in the ``active`` warpgroups that compute.
// Meanwhile one thread of the last warpgroup copies the ``length`` blocks of the stream, once for each tile. The
// threads of a warpgroup wait for each other after a tile, since the next one overwrites its memory.
template <class S, class Body>
__device__ __forceinline__ void for_each_tile(const char* stream, int length, long long count, int active, char* shared,
                                              Body body) {
  const int warpgroup = threadIdx.x / 128;
  const int rows_each = active * SIDE;
  const long long tiles = (count + rows_each - 1) / rows_each;
  SharedMemory<S> memory(shared, warpgroup % WARPGROUPS);
  RingFor<S> ring(memory.ring, memory.barriers);
  memory.start(active);
  if (warpgroup == WARPGROUPS) {
    decrease_register_budget();
    if (threadIdx.x % 128 == 0) ring.copy_all(stream, length, tiles);
    return;
  }
  increase_register_budget();
  if (warpgroup >= active) return;
  for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    body(ring, memory, warpgroup, tile * rows_each + warpgroup * SIDE);
    warpgroup_barrier(warpgroup);
  }
}

// dx = ((g W2^T) * d1) W1^T for rows g [64, OUTER] in registers, in chunks of 64 hidden columns;
// ``load_derivative(c, d)`` loads d1 = silu'(x W1) of chunk c.
template <class S, class RingType, class LoadDerivative>
__device__ __forceinline__ void input_gradients(float (&g)[S::COLUMNS][VALUES], float (&dx)[S::Input::PANELS][VALUES],
                                                RingType& ring, const SharedMemory<S>& memory, int warpgroup,
                                                const float* w1_info, const float* w2_info,
                                                LoadDerivative load_derivative) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  float norm[2] = {0, 0}, unscale2[2], unscale1[2];
#pragma unroll
  for (int n = 0; n < S::COLUMNS; ++n)
#pragma unroll
    for (int i = 0; i < VALUES; ++i) norm[i / 2 % 2] += g[n][i] * g[n][i];
  float scale2[2];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    norm[j] = sqrtf(quad_sum(norm[j]));
    scale2[j] = power_of_two(norm[j]);
    const float scale1 = power_of_two(norm[j] * w2_info[2] * 1.1f);
    unscale2[j] = inverse_power_of_two(scale2[j]) * (w2_info[0] * S::OUTER_CORRECTION) * scale1;
    unscale1[j] = inverse_power_of_two(scale1) * (w1_info[0] * S::INNER_CORRECTION);
  }
  // no thread of the warpgroup needs the tile's former contents any more
  warpgroup_barrier(warpgroup);
#pragma unroll
  for (int n = 0; n < S::COLUMNS; ++n)
#pragma unroll
    for (int i = 0; i < VALUES; i += 2) {
      const int j = i / 2 % 2, row = warp * 16 + lane / 4 + 8 * j;
      const Split pair = split(g[n][i] * scale2[j], g[n][i + 1] * scale2[j]);
      char* to = memory.tile + n * PANEL_BYTES + row * 128 + ((i / 4) ^ (row % 8)) * 16 + lane % 4 * 4;
      *reinterpret_cast<u32*>(to) = pair.hi;
      if (S::PRODUCTS == 3) *reinterpret_cast<u32*>(to + S::COLUMNS * PANEL_BYTES) = pair.lo;
    }
  warpgroup_barrier(warpgroup);
  const u32 tile = shared_address(memory.tile);
#pragma unroll
  for (int q = 0; q < S::Input::PANELS; ++q) clear(dx[q]);
#pragma unroll 1
  for (int c = 0; c < S::CHUNKS; ++c) {
    float t[VALUES], d[VALUES];
    clear(t);
#pragma unroll
    for (int n = 0; n < S::COLUMNS; ++n) ring.add(t, tile + n * PANEL_BYTES, S::COLUMNS * PANEL_BYTES);
    load_derivative(c, d);  // overlaps with the products
    ring.wait_for_all();
    fence_accumulators(t);
    u32 hi[VALUES / 2], lo[VALUES / 2];
#pragma unroll
    for (int i = 0; i < VALUES; i += 2) {
      const float unscale = unscale2[i / 2 % 2];
      const Split pair = split(t[i] * unscale * d[i], t[i + 1] * unscale * d[i + 1]);
      hi[i / 2] = pair.hi;
      lo[i / 2] = pair.lo;
    }
#pragma unroll
    for (int q = 0; q < S::Input::PANELS; ++q) ring.add_registers(dx[q], hi, lo);
    ring.wait_for_all();
  }
#pragma unroll
  for (int q = 0; q < S::Input::PANELS; ++q) {
    fence_accumulators(dx[q]);
#pragma unroll
    for (int i = 0; i < VALUES; ++i) dx[q][i] *= unscale1[i / 2 % 2];
  }
}

// silu(x W1) W2 for 64 rows, in chunks of 64 hidden columns; ``store_derivative(c, d)`` receives d = silu'(x W1) of
// chunk c. A chunk stays in registers: an accumulator has the layout of a left operand.
template <class S, class RingType, class StoreDerivative>
__device__ __forceinline__ void second_preactivation(float (&total)[S::COLUMNS][VALUES], RingType& ring,
                                                     const SharedMemory<S>& memory, const RowSums& sums,
                                                     const float* w1_info, const float* w2_info,
                                                     StoreDerivative store_derivative) {
  float unscale1[2], scale2[2], unscale2[2];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    unscale1[j] = inverse_power_of_two(power_of_two(sums.norm[j])) * (w1_info[0] * S::INPUT_CORRECTION);
    scale2[j] = power_of_two(sums.norm[j] * w1_info[1]);
    unscale2[j] = inverse_power_of_two(scale2[j]) * (w2_info[0] * S::INNER_CORRECTION);
  }
  const u32 tile = shared_address(memory.tile);
#pragma unroll
  for (int n = 0; n < S::COLUMNS; ++n) clear(total[n]);
#pragma unroll 1
  for (int c = 0; c < S::CHUNKS; ++c) {
    float p[VALUES];
    clear(p);
#pragma unroll
    for (int q = 0; q < S::Input::PANELS; ++q) ring.add(p, tile + q * PANEL_BYTES, S::Input::PANELS * PANEL_BYTES);
    ring.wait_for_all();
    fence_accumulators(p);
    u32 hi[VALUES / 2], lo[VALUES / 2];
    float d[VALUES];
#pragma unroll
    for (int i = 0; i < VALUES; i += 2) {
      const int j = i / 2 % 2;
      float h0, h1;
      silu_and_derivative(p[i] * unscale1[j], h0, d[i]);
      silu_and_derivative(p[i + 1] * unscale1[j], h1, d[i + 1]);
      const Split pair = split(h0 * scale2[j], h1 * scale2[j]);
      hi[i / 2] = pair.hi;
      lo[i / 2] = pair.lo;
    }
    store_derivative(c, d);
#pragma unroll
    for (int n = 0; n < S::COLUMNS; ++n) ring.add_registers(total[n], hi, lo);
    ring.wait_for_all();
  }
#pragma unroll
  for (int n = 0; n < S::COLUMNS; ++n) {
    fence_accumulators(total[n]);
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

}  // namespace mlp
