// Kernels of MLPs with two hidden layers: the layers and the matrix that may read them, their gradient, and a scalar
// result (an energy) with its gradient.
//
// A thread block has two warpgroups that compute (consumers), each on 64 rows of its own (only one, ``active``, if
// there are few rows), and a producer thread, which copies the stream of weights (mlp_weight_stream.cuh) into a ring
// buffer in shared memory, as far ahead as there is room. A consumer waits until a block of weights has arrived, but
// neither for the other consumer nor for the products of the block before: while one computes its nonlinearities, the
// other uses the tensor cores.

namespace mlp {

// energy = v silu(silu(x W1) W2) + r x and its gradient by x; if SCALED, both are multiplied by ``factor`` [count].
//
// ``stream`` holds the blocks of W1 and W2, then those of W2^T and W1^T, each pair in chunks of 64 hidden columns.
// ``scratch`` [gridDim.x, 2, INNER, 64] holds silu'(x W1) of each thread block's current tiles.
template <class S, bool SCALED>
__device__ __forceinline__ void energy(const Pointers& x, const char* stream, const float* w1_info,
                                       const float* w2_info, const float* v, const float* r, const float* factor,
                                       float* result, const Pointers& dx, float* scratch, long long count, int active,
                                       char* shared) {
  const int length = 2 * S::CHUNKS * (S::Input::PANELS + S::COLUMNS);
  for_each_tile<S>(
      stream, length, count, active, shared,
      [&](RingFor<S>& ring, const SharedMemory<S>& memory, int warpgroup, long long row0) {
        const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
        float* derivatives = scratch +
                             (static_cast<long long>(blockIdx.x) * WARPGROUPS + warpgroup) * S::CHUNKS * SIDE * SIDE +
                             thread * 4;
        const RowSums sums =
            load_rows<typename S::Input, S::PRODUCTS, true>(x, r, row0, count, memory.tile, memory.row_sums);
        warpgroup_barrier(warpgroup);
        float total[S::COLUMNS][VALUES];
        second_preactivation<S>(total, ring, memory, sums, w1_info, w2_info, [&](int c, const float (&d)[VALUES]) {
#pragma unroll
          for (int i = 0; i < VALUES; i += 4)
            *reinterpret_cast<float4*>(derivatives + c * SIDE * SIDE + i * 128) =
                make_float4(d[i], d[i + 1], d[i + 2], d[i + 3]);
        });
        float partial[2] = {0, 0}, scale[2] = {1, 1};
#pragma unroll
        for (int n = 0; n < S::COLUMNS; ++n)
#pragma unroll
          for (int vector = 0; vector < VECTORS; ++vector) {
            const float4 weights = reload_float4(v + n * SIDE + column_of(vector));
            const float weight[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              float h, d, &value = total[n][index_of(vector, i)];
              silu_and_derivative(value, h, d);
              partial[row_of(vector)] += h * weight[i];
              value = d * weight[i];
            }
          }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const long long row = row0 + warp * 16 + lane / 4 + 8 * j;
          const float row_energy = quad_sum(partial[j]) + sums.linear[j];
          if (row < count) {
            if (SCALED) scale[j] = __ldg(factor + row);
            if (lane % 4 == 0) result[row] = row_energy * scale[j];
          }
        }
        float gradient[S::Input::PANELS][VALUES];
        input_gradients<S>(total, gradient, ring, memory, warpgroup, w1_info, w2_info, [&](int c, float (&d)[VALUES]) {
#pragma unroll
          for (int i = 0; i < VALUES; i += 4) {
            const float4 vector = *reinterpret_cast<const float4*>(derivatives + c * SIDE * SIDE + i * 128);
            d[i] = vector.x, d[i + 1] = vector.y, d[i + 2] = vector.z, d[i + 3] = vector.w;
          }
        });
#pragma unroll
        for (int q = 0; q < S::Input::PANELS; ++q) {
#pragma unroll
          for (int vector = 0; vector < VECTORS; ++vector) {
            const float4 constant = reload_float4(r + q * SIDE + column_of(vector));
            const float add[4] = {constant.x, constant.y, constant.z, constant.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              float& value = gradient[q][index_of(vector, i)];
              value = (value + add[i]) * scale[row_of(vector)];
            }
          }
        }
        store_parts<S>(dx, row0, count, gradient);
      });
}

// out = silu(p2), p2 = silu(p1) W2, p1 = x W1; d1 = silu'(p1), d2 = silu'(p2); y = out W3, if there is a W3.
//
// ``stream`` holds the blocks of W1 and W2 in chunks of 64 hidden columns, then those of W3, column by column.
template <class S, class D = typename DerivativeType<S::PRODUCTS>::Type>
__device__ __forceinline__ void hidden(const Pointers& x, const char* stream, const float* w1_info,
                                       const float* w2_info, const float* w3_info, float* out, D* d1, D* d2, float* y,
                                       long long count, int active, char* shared) {
  const int length = S::CHUNKS * (S::Input::PANELS + S::COLUMNS) + S::COLUMNS * S::Last::PANELS;
  for_each_tile<S>(stream, length, count, active, shared,
                   [&](RingFor<S>& ring, const SharedMemory<S>& memory, int warpgroup, long long row0) {
                     const RowSums sums = load_rows<typename S::Input, S::PRODUCTS, false>(
                         x, nullptr, row0, count, memory.tile, memory.row_sums);
                     warpgroup_barrier(warpgroup);
                     float total[S::COLUMNS][VALUES];
                     second_preactivation<S>(
                         total, ring, memory, sums, w1_info, w2_info,
                         [&](int c, const float (&d)[VALUES]) { store_tile(d1, S::INNER, c * SIDE, row0, count, d); });
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
                     for (int j = 0; j < 2; ++j) {
                       scale[j] = power_of_two(sqrtf(quad_sum(norm[j])));
                       unscale[j] = inverse_power_of_two(scale[j]) * (w3_info[0] * S::OUTER_CORRECTION);
                     }
                     u32 hi[S::COLUMNS][VALUES / 2], lo[S::COLUMNS][VALUES / 2];
#pragma unroll
                     for (int n = 0; n < S::COLUMNS; ++n)
#pragma unroll
                       for (int i = 0; i < VALUES; i += 2) {
                         const Split pair = split(total[n][i] * scale[i / 2 % 2], total[n][i + 1] * scale[i / 2 % 2]);
                         hi[n][i / 2] = pair.hi;
                         lo[n][i / 2] = pair.lo;
                       }
#pragma unroll 1
                     for (int m = 0; m < S::Last::PANELS; ++m) {
                       float sum[VALUES];
                       clear(sum);
#pragma unroll
                       for (int n = 0; n < S::COLUMNS; ++n) ring.add_registers(sum, hi[n], lo[n]);
                       ring.wait_for_all();
                       fence_accumulators(sum);
#pragma unroll
                       for (int i = 0; i < VALUES; ++i) sum[i] *= unscale[i / 2 % 2];
                       store_tile(y, S::LAST, m * SIDE, row0, count, sum);
                     }
                   });
}

// dx = ((g2 * d2) W2^T * d1) W1^T, with g2 = g + dy W3^T, or g if there is no W3.
//
// ``stream`` holds the blocks of W3^T, row by row, then those of W2^T and W1^T in chunks of 64 hidden columns.
template <class S, class D = typename DerivativeType<S::PRODUCTS>::Type>
__device__ __forceinline__ void hidden_backward(const float* g, float* dy, const D* d1, const D* d2, const char* stream,
                                                const float* w1_info, const float* w2_info, const float* w3_info,
                                                const Pointers& dx, long long count, int active, char* shared) {
  using Last = typename S::Last;
  const int length = S::CHUNKS * (S::Input::PANELS + S::COLUMNS) + S::COLUMNS * Last::PANELS;
  for_each_tile<S>(
      stream, length, count, active, shared,
      [&](RingFor<S>& ring, const SharedMemory<S>& memory, int warpgroup, long long row0) {
        float total[S::COLUMNS][VALUES], unscale[2] = {0, 0};
#pragma unroll
        for (int n = 0; n < S::COLUMNS; ++n) clear(total[n]);
        if constexpr (Last::PANELS > 0) {
          const RowSums sums =
              load_rows<Last, S::PRODUCTS, false>(Pointers{{dy}}, nullptr, row0, count, memory.tile, memory.row_sums);
          warpgroup_barrier(warpgroup);
          const u32 panels = shared_address(memory.tile);
#pragma unroll
          for (int q = 0; q < Last::PANELS; ++q)
#pragma unroll
            for (int n = 0; n < S::COLUMNS; ++n)
              ring.add(total[n], panels + q * PANEL_BYTES, Last::PANELS * PANEL_BYTES);
          ring.wait_for_all();
#pragma unroll
          for (int j = 0; j < 2; ++j)
            unscale[j] = inverse_power_of_two(power_of_two(sums.norm[j])) * (w3_info[0] * S::LAST_CORRECTION);
        }
#pragma unroll
        for (int n = 0; n < S::COLUMNS; ++n) {
          float gradient[VALUES], d[VALUES];
          load_tile(g, S::OUTER, n * SIDE, row0, count, gradient);
          load_tile(d2, S::OUTER, n * SIDE, row0, count, d);
          fence_accumulators(total[n]);
#pragma unroll
          for (int i = 0; i < VALUES; ++i) total[n][i] = (total[n][i] * unscale[i / 2 % 2] + gradient[i]) * d[i];
        }
        float gradient[S::Input::PANELS][VALUES];
        input_gradients<S>(total, gradient, ring, memory, warpgroup, w1_info, w2_info,
                           [&](int c, float (&d)[VALUES]) { load_tile(d1, S::INNER, c * SIDE, row0, count, d); });
        store_parts<S>(dx, row0, count, gradient);
      });
}

}  // namespace mlp

// ---- instances: one line for each, appended by instances.py ----

#define NQ_KERNEL(name) extern "C" __global__ void __launch_bounds__(mlp::THREADS, 1) name
#define NQ_SHARED(bytes, ...)                                \
  extern __shared__ __align__(1024) char shared[];           \
  using S = mlp::Shape<__VA_ARGS__>;                         \
  using D = typename mlp::DerivativeType<S::PRODUCTS>::Type; \
  static_assert(S::SHARED_BYTES == bytes, "the launch asks for as much")

#define NQ_ENERGY(name, bytes, scaled, ...)                                                                            \
  NQ_KERNEL(name)(mlp::Pointers x, mlp::Pointers dx, const char* stream, const float* w1_info, const float* w2_info,   \
                  const float* v, const float* r, const float* factor, float* result, float* scratch, long long count, \
                  int active) {                                                                                        \
    NQ_SHARED(bytes, __VA_ARGS__);                                                                                     \
    mlp::energy<S, scaled>(x, stream, w1_info, w2_info, v, r, factor, result, dx, scratch, count, active, shared);     \
  }

#define NQ_HIDDEN(name, bytes, ...)                                                                               \
  NQ_KERNEL(name)(mlp::Pointers x, const char* stream, const float* w1_info, const float* w2_info,                \
                  const float* w3_info, float* out, void* d1, void* d2, float* y, long long count, int active) {  \
    NQ_SHARED(bytes, __VA_ARGS__);                                                                                \
    mlp::hidden<S>(x, stream, w1_info, w2_info, w3_info, out, static_cast<D*>(d1), static_cast<D*>(d2), y, count, \
                   active, shared);                                                                               \
  }

#define NQ_HIDDEN_BACKWARD(name, bytes, ...)                                                                       \
  NQ_KERNEL(name)(mlp::Pointers dx, const float* g, float* dy, const void* d1, const void* d2, const char* stream, \
                  const float* w1_info, const float* w2_info, const float* w3_info, long long count, int active) { \
    NQ_SHARED(bytes, __VA_ARGS__);                                                                                 \
    mlp::hidden_backward<S>(g, dy, static_cast<const D*>(d1), static_cast<const D*>(d2), stream, w1_info, w2_info, \
                            w3_info, dx, count, active, shared);                                                   \
  }
