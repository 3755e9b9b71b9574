// Gradient of the contraction over the edges of one centre, and products of two tensors of one atom, in fp32.
//
// Sums have a fixed order and use no atomics; offsets are 64-bit. The centre's vectors and the components of an atom
// stay in registers, where a Triton kernel would read them again for every edge, or look them up in a table.

namespace contraction {

using namespace ptx;

constexpr int LANES = 32;
constexpr int STAGES = 4;
constexpr int MOST_WARPS = 8;

struct Pointers {
  const float* part[4];
};

// ---- gradient of the contraction ----

// Sizes: U channels, L orders, K layers that contract the same w and y. A warp processes all channels of an edge, each
// lane CHANNELS of them.
template <int U_, int L_, int K_>
struct Shape {
  static constexpr int U = U_, L = L_, K = K_, M = L * L, CHANNELS = U / LANES;
  static constexpr int WEIGHTS = L * U, LAYERS = K * U, HARMONICS = (M + 3) / 4 * 4;  // floats of an edge
  static constexpr int EDGE = WEIGHTS + LAYERS + HARMONICS;
  static constexpr int WARP = STAGES * EDGE > M* U ? STAGES * EDGE : M * U;
  static constexpr int PADDED_M = M <= 16 ? 16 : 32;
  static_assert(U % LANES == 0 && M <= LANES, "a lane has whole channels, and there is a lane for every component");
};

template <int C>
__device__ __forceinline__ void load_channels(float (&values)[C], const float* from) {
  if (C == 2) {
    const float2 two = *reinterpret_cast<const float2*>(from);
    values[0] = two.x;
    values[C - 1] = two.y;
  } else {
#pragma unroll
    for (int c = 0; c < C; ++c) values[c] = from[c];
  }
}

template <int C>
__device__ __forceinline__ void store_channels(const float (&values)[C], float* to) {
  if (C == 2) {
    *reinterpret_cast<float2*>(to) = make_float2(values[0], values[C - 1]);
  } else {
#pragma unroll
    for (int c = 0; c < C; ++c) to[c] = values[c];
  }
}

// Starts to copy the weights, cotangents and harmonics of edge e into shared memory.
template <class S>
__device__ __forceinline__ void fetch_edge(float* to, const Pointers& g, const float* w, const float* y, long long e,
                                           int lane) {
#pragma unroll
  for (int i = 0; i < S::WEIGHTS / 4; i += LANES)
    if (i + lane < S::WEIGHTS / 4) cp_async_16(to + 4 * (i + lane), w + e * S::WEIGHTS + 4 * (i + lane));
#pragma unroll
  for (int k = 0; k < S::K; ++k)
    if (lane < S::U / 4) cp_async_16(to + S::WEIGHTS + k * S::U + 4 * lane, g.part[k] + e * S::U + 4 * lane);
  if (lane < S::M) cp_async_4(to + S::WEIGHTS + S::LAYERS + lane, y + e * S::M + lane);
}

// Sums each of 2 COUNT values over the 2 WIDTH lanes of a group; afterwards each lane has the sum of one of them in
// values[0].
//
// In every step a lane sends half of its values to a lane of the other half of its group. So it takes as many shuffles
// as there are values, not five times as many.
template <int COUNT, int WIDTH, int N>
__device__ __forceinline__ void sum_over_lanes(float (&values)[N], int lane) {
  if constexpr (COUNT > 0) {
    const bool upper = lane & WIDTH;
#pragma unroll
    for (int j = 0; j < COUNT; ++j) {
      const float sent = upper ? values[j] : values[j + COUNT], kept = upper ? values[j + COUNT] : values[j];
      values[j] = kept + __shfl_xor_sync(0xFFFFFFFFu, sent, WIDTH);
    }
    sum_over_lanes<COUNT / 2, WIDTH / 2>(values, lane);
  } else if constexpr (WIDTH > 0) {
    values[0] += __shfl_xor_sync(0xFFFFFFFFu, values[0], WIDTH);
    sum_over_lanes<0, WIDTH / 2>(values, lane);
  }
}

// Calls body(e, edge) for each edge of the centre that belongs to this warp; ``edge`` points to its weights, cotangents
// and harmonics in shared memory. Three edges are being copied while one is processed.
template <class S, class Body>
__device__ __forceinline__ void for_each_edge(const Pointers& g, const float* w, const float* y,
                                              const long long* row_ptr, float* mine, Body body) {
  const int warps = blockDim.x / LANES, lane = threadIdx.x % LANES;
  const long long first = row_ptr[blockIdx.x] + threadIdx.x / LANES, end = row_ptr[blockIdx.x + 1];
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s) {
    if (first + s * warps < end) fetch_edge<S>(mine + s * S::EDGE, g, w, y, first + s * warps, lane);
    cp_async_commit();
  }
  int stage = 0;
  for (long long e = first; e < end; e += warps) {
    cp_async_wait<STAGES - 2>();
    __syncwarp();
    const int free = stage == 0 ? STAGES - 1 : stage - 1;
    if (e + (STAGES - 1) * warps < end) fetch_edge<S>(mine + free * S::EDGE, g, w, y, e + (STAGES - 1) * warps, lane);
    cp_async_commit();
    body(e, mine + stage * S::EDGE);
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }
  cp_async_wait<0>();
  __syncwarp();
}

template <class S>
__device__ __forceinline__ void load_harmonics(float (&harmonics)[S::HARMONICS], const float* edge) {
#pragma unroll
  for (int m = 0; m < S::HARMONICS; m += 4) {
    const float4 four = *reinterpret_cast<const float4*>(edge + S::WEIGHTS + S::LAYERS + m);
    harmonics[m] = four.x;
    harmonics[m + 1] = four.y;
    harmonics[m + 2] = four.z;
    harmonics[m + 3] = four.w;
  }
}

// Sums each component and channel over all warps of the thread block, and stores the sums.
template <class S>
__device__ __forceinline__ void store_sums(const float (&sums)[S::M][S::CHANNELS], float* dz, float* shared) {
  const int warps = blockDim.x / LANES;
  float* mine = shared + threadIdx.x / LANES * S::WARP + threadIdx.x % LANES * S::CHANNELS;
#pragma unroll
  for (int m = 0; m < S::M; ++m) store_channels(sums[m], mine + m * S::U);
  __syncthreads();
  for (int i = threadIdx.x; i < S::M * S::U; i += blockDim.x) {
    float total = 0;
    for (int k = 0; k < warps; ++k) total += shared[k * S::WARP + i];
    dz[static_cast<long long>(blockIdx.x) * (S::M * S::U) + i] = total;
  }
}

// Computes dw and dy, summed over the layers, and dz of the first layer. The edges of centre i are row_ptr[i] to
// row_ptr[i + 1] - 1.
//
// With t_m = sum over k of g_k z_k,m: dw_l = sum over m in l of y_m t_m, dy_m = sum over channels of w_l(m) t_m, and
// dz_m = sum over edges of g_0 w_l(m) y_m. The vectors z of the centre and the sums dz stay in registers.
template <class S>
__device__ __forceinline__ void gradient(const Pointers& g, const float* w, const float* y, const Pointers& vectors,
                                         const long long* row_ptr, float* dw, float* dy, float* dz, float* shared) {
  constexpr int C = S::CHANNELS, M = S::M;
  const int lane = threadIdx.x % LANES;
  float z[S::K][M][C], sums[M][C];
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int k = 0; k < S::K; ++k)
      load_channels(z[k][m], vectors.part[k] + (static_cast<long long>(blockIdx.x) * M + m) * S::U + C * lane);
#pragma unroll
    for (int c = 0; c < C; ++c) sums[m][c] = 0;
  }
  // sum_over_lanes() divides first by the highest bit of lane and component, then by the next one, and so on
  const int component = lane / (LANES / S::PADDED_M);
  const bool writes = lane % (LANES / S::PADDED_M) == 0 && component < M;
  for_each_edge<S>(g, w, y, row_ptr, shared + threadIdx.x / LANES * S::WARP, [&](long long e, const float* edge) {
    float g_e[S::K][C], harmonics[S::HARMONICS], parts[S::PADDED_M];
#pragma unroll
    for (int k = 0; k < S::K; ++k) load_channels(g_e[k], edge + S::WEIGHTS + k * S::U + C * lane);
    load_harmonics<S>(harmonics, edge);
#pragma unroll
    for (int m = M; m < S::PADDED_M; ++m) parts[m] = 0;
#pragma unroll
    for (int l = 0; l < S::L; ++l) {
      float w_l[C], scaled[C], dw_l[C];
      load_channels(w_l, edge + l * S::U + C * lane);
#pragma unroll
      for (int c = 0; c < C; ++c) {
        scaled[c] = g_e[0][c] * w_l[c];
        dw_l[c] = 0;
      }
#pragma unroll
      for (int m = l * l; m < (l + 1) * (l + 1); ++m) {
        parts[m] = 0;
#pragma unroll
        for (int c = 0; c < C; ++c) {
          float t = g_e[0][c] * z[0][m][c];
#pragma unroll
          for (int k = 1; k < S::K; ++k) t += g_e[k][c] * z[k][m][c];
          dw_l[c] += harmonics[m] * t;
          parts[m] += w_l[c] * t;
          sums[m][c] += scaled[c] * harmonics[m];
        }
      }
      store_channels(dw_l, dw + e * S::WEIGHTS + l * S::U + C * lane);
    }
    sum_over_lanes<S::PADDED_M / 2, LANES / 2>(parts, lane);
    if (writes) dy[e * M + component] = parts[0];
  });
  store_sums<S>(sums, dz, shared);
}

// Computes dz of a layer after the first.
template <class S>
__device__ __forceinline__ void moment(const Pointers& g, const float* w, const float* y, const long long* row_ptr,
                                       float* dz, float* shared) {
  constexpr int C = S::CHANNELS, M = S::M;
  const int lane = threadIdx.x % LANES;
  float sums[M][C];
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int c = 0; c < C; ++c) sums[m][c] = 0;
  for_each_edge<S>(g, w, y, row_ptr, shared + threadIdx.x / LANES * S::WARP, [&](long long, const float* edge) {
    float g_e[C], harmonics[S::HARMONICS];
    load_channels(g_e, edge + S::WEIGHTS + C * lane);
    load_harmonics<S>(harmonics, edge);
#pragma unroll
    for (int l = 0; l < S::L; ++l) {
      float w_l[C];
      load_channels(w_l, edge + l * S::U + C * lane);
#pragma unroll
      for (int m = l * l; m < (l + 1) * (l + 1); ++m)
#pragma unroll
        for (int c = 0; c < C; ++c) sums[m][c] += g_e[c] * w_l[c] * harmonics[m];
    }
  });
  store_sums<S>(sums, dz, shared);
}

}  // namespace contraction

// ---- instances: one line for each, appended by instances.py ----

#define NQ_CONTRACTION(name, blocks) \
  extern "C" __global__ void __launch_bounds__(contraction::MOST_WARPS* contraction::LANES, blocks) name
#define NQ_NUMBERS(bytes, ...)                     \
  extern __shared__ __align__(16) float numbers[]; \
  using S = contraction::Shape<__VA_ARGS__>;       \
  static_assert(contraction::MOST_WARPS * S::WARP * sizeof(float) == bytes, "the launch asks for as much")

#define NQ_CONTRACT_GRADIENT(name, bytes, ...)                                                              \
  NQ_CONTRACTION(name, 2)(contraction::Pointers g, const float* w, const float* y, contraction::Pointers z, \
                          const long long* row_ptr, float* dw, float* dy, float* dz) {                      \
    NQ_NUMBERS(bytes, __VA_ARGS__);                                                                         \
    contraction::gradient<S>(g, w, y, z, row_ptr, dw, dy, dz, numbers);                                     \
  }

#define NQ_CONTRACT_MOMENT(name, bytes, ...)                                                                 \
  NQ_CONTRACTION(name, 3)(contraction::Pointers g, const float* w, const float* y, const long long* row_ptr, \
                          float* dz) {                                                                       \
    NQ_NUMBERS(bytes, __VA_ARGS__);                                                                          \
    contraction::moment<S>(g, w, y, row_ptr, dz, numbers);                                                   \
  }

// Products of x [N, A, U] and y [N, B, U] with path weights w [P, U], one thread for each atom and channel. ``...`` are
// statements that compute out[0], out[U] and so on from the thread's a, b and p; backend.py writes them.
#define NQ_CHANNEL_PRODUCT(name, bytes, A, B, P, D, U, ...)                                       \
  extern "C" __global__ void __launch_bounds__(128)                                               \
      name(const float* x, const float* y, const float* w, float* out, long long count) {         \
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x, n = i / U; \
    const int u = static_cast<int>(i % U);                                                        \
    if (n >= count) return;                                                                       \
    float a[A], b[B], p[P];                                                                       \
    _Pragma("unroll") for (int k = 0; k < A; ++k) a[k] = x[(n * A + k) * U + u];                  \
    _Pragma("unroll") for (int k = 0; k < B; ++k) b[k] = y[(n * B + k) * U + u];                  \
    _Pragma("unroll") for (int k = 0; k < P; ++k) p[k] = w[k * U + u];                            \
    out += n * (D * U) + u;                                                                       \
    __VA_ARGS__                                                                                   \
  }
