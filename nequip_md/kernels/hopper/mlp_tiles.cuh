// Tiles of activations: 64 rows of an input in shared memory, 64 by 64 elements of a result in registers.
//
// A tile in shared memory consists of panels, 64 rows of 64 columns, stored as the tensor cores read them (see
// mlp_weight_stream.cuh).
//
// Of every 16 columns of an accumulator, a thread holds columns 2 q, 2 q + 1, 8 + 2 q and 9 + 2 q of two rows. The rows
// [n] of the weight blocks are permuted so that these are columns 4 q to 4 q + 3 of the matrix (``column_of``), 16
// bytes to load or store. Where the accumulator becomes the left operand of the next product, the columns [k] of that
// product's blocks are permuted as well.

namespace mlp {

// Number of blocks, or panels, that hold ``width`` columns.
__device__ constexpr int num_blocks(int width) { return (width + SIDE - 1) / SIDE; }

// An input that consists of up to four arrays side by side: the width of each, a multiple of 8; 0 if there is none.
// Each part starts a new panel.
template <int K0, int K1 = 0, int K2 = 0, int K3 = 0>
struct Parts {
  static constexpr int PANELS = num_blocks(K0) + num_blocks(K1) + num_blocks(K2) + num_blocks(K3);
  static constexpr int ADDITIONS = additions(K0) + additions(K1) + additions(K2) + additions(K3);
  __device__ static constexpr int width(int part) { return part == 0 ? K0 : part == 1 ? K1 : part == 2 ? K2 : K3; }
  __device__ static constexpr int first(int part) {
    return (part > 0 ? num_blocks(K0) : 0) + (part > 1 ? num_blocks(K1) : 0) + (part > 2 ? num_blocks(K2) : 0);
  }
  __device__ static constexpr int part(int panel) {
    return panel < first(1) ? 0 : panel < first(2) ? 1 : panel < first(3) ? 2 : 3;
  }
  __device__ static constexpr int column(int panel) { return (panel - first(part(panel))) * SIDE; }
};

struct Pointers {
  float* part[4];
};

// Norms of a thread's two rows, lane / 4 and lane / 4 + 8 of its warp's 16, and their products with the vector r.
struct RowSums {
  float norm[2], linear[2];
};

// Loads 64 rows of the input, scales them and stores them in shared memory as fp16: the high part of panel q at
// ``tile`` + q PANEL_BYTES, the low parts behind all high parts. Also computes the norm of each row and, if LINEAR, its
// product with ``r``.
//
// A warp loads two rows at a time, 16 bytes for each thread.
template <class P, int PRODUCTS, bool LINEAR>
__device__ __forceinline__ RowSums load_rows(const Pointers& x, const float* r, long long row0, long long count,
                                             char* tile, float2* shared_sums) {
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
        const float4 b = reload_float4(r + q * SIDE + column);
        linear += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
      }
    }
#pragma unroll
    for (int lanes = 8; lanes > 0; lanes /= 2) {
      square += __shfl_xor_sync(0xffffffffu, square, lanes);
      if (LINEAR) linear += __shfl_xor_sync(0xffffffffu, linear, lanes);
    }
    const float norm = sqrtf(square), scale = power_of_two(norm);
    if (lane % 16 == 0) shared_sums[row] = make_float2(norm, linear);
    const int at = row * 128 + ((column / 8) ^ (row % 8)) * 16 + column % 8 * 2;
#pragma unroll
    for (int q = 0; q < P::PANELS; ++q) {
      const float4 a = values[i][q];
      const Split left = split(a.x * scale, a.y * scale), right = split(a.z * scale, a.w * scale);
      *reinterpret_cast<uint2*>(tile + q * PANEL_BYTES + at) = make_uint2(left.hi, right.hi);
      if (PRODUCTS == 3)
        *reinterpret_cast<uint2*>(tile + (P::PANELS + q) * PANEL_BYTES + at) = make_uint2(left.lo, right.lo);
    }
  }
  __syncwarp();
  RowSums sums;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const float2 pair = shared_sums[warp * 16 + lane / 4 + 8 * j];
    sums.norm[j] = pair.x;
    sums.linear[j] = pair.y;
  }
  return sums;
}

// Type in which silu', which lies in (-0.1, 1.1), is stored: fp16 where one product is taken, whose accuracy it has.
template <int PRODUCTS>
struct DerivativeType {
  using Type = float;
};
template <>
struct DerivativeType<1> {
  using Type = unsigned short;
};

__device__ __forceinline__ void store_vector(float* to, float4 x) { *reinterpret_cast<float4*>(to) = x; }
__device__ __forceinline__ void store_vector(unsigned short* to, float4 x) {
  *reinterpret_cast<uint2*>(to) = make_uint2(pack_fp16(x.x, x.y), pack_fp16(x.z, x.w));
}
__device__ __forceinline__ float4 load_vector(const float* from) {
  return __ldg(reinterpret_cast<const float4*>(from));
}
__device__ __forceinline__ float4 load_vector(const unsigned short* from) {
  const uint2 pair = __ldg(reinterpret_cast<const uint2*>(from));
  const float2 left = unpack_fp16(pair.x), right = unpack_fp16(pair.y);
  return make_float4(left.x, left.y, right.x, right.y);
}

// A thread holds a 64 by 64 tile as VECTORS vectors of four adjacent columns of one row: ``row_of`` is 0 or 1 for the
// first or second of its two rows, ``index_of`` the register of element i, ``column_of`` the first column.
constexpr int VECTORS = VALUES / 4;
__device__ __forceinline__ constexpr int row_of(int vector) { return vector % 2; }
__device__ __forceinline__ constexpr int index_of(int vector, int i) {
  return vector / 2 * 8 + vector % 2 * 2 + i / 2 * 4 + i % 2;
}
__device__ __forceinline__ int column_of(int vector) { return vector / 2 * 16 + threadIdx.x % 4 * 4; }

__device__ __forceinline__ float4 get_vector(const float (&values)[VALUES], int vector) {
  return make_float4(values[index_of(vector, 0)], values[index_of(vector, 1)], values[index_of(vector, 2)],
                     values[index_of(vector, 3)]);
}

__device__ __forceinline__ void set_vector(float (&values)[VALUES], int vector, float4 x) {
  values[index_of(vector, 0)] = x.x;
  values[index_of(vector, 1)] = x.y;
  values[index_of(vector, 2)] = x.z;
  values[index_of(vector, 3)] = x.w;
}

// Stores a 64 by 64 tile from registers into an array [count, width] from (row0, ``column``) on; ``width`` is a
// multiple of 8. Elements outside the array are skipped.
template <class T>
__device__ __forceinline__ void store_tile(T* out, int width, int column, long long row0, long long count,
                                           const float (&values)[VALUES]) {
  const long long row = row0 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  T* to = out + row * width + column;
#pragma unroll
  for (int vector = 0; vector < VECTORS; ++vector)
    if (row + 8 * row_of(vector) < count && (width % SIDE == 0 || column + column_of(vector) < width))
      store_vector(to + 8 * row_of(vector) * width + column_of(vector), get_vector(values, vector));
}

// Loads such a tile; elements outside the array are zero.
template <class T>
__device__ __forceinline__ void load_tile(const T* x, int width, int column, long long row0, long long count,
                                          float (&values)[VALUES]) {
  const long long row = row0 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  const T* from = x + row * width + column;
#pragma unroll
  for (int vector = 0; vector < VECTORS; ++vector) {
    const bool there = row + 8 * row_of(vector) < count && (width % SIDE == 0 || column + column_of(vector) < width);
    set_vector(values, vector,
               there ? load_vector(from + 8 * row_of(vector) * width + column_of(vector)) : make_float4(0, 0, 0, 0));
  }
}

}  // namespace mlp
