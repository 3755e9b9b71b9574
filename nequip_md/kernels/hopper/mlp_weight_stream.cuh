// The weights of an MLP kernel: a stream of 64 by 64 blocks in the order in which they are multiplied.
//
// A block is stored as the tensor cores read it: [n, k], 128 bytes for each n, whose 16-byte pieces are swizzled by n
// (the 128-byte swizzle of the PTX manual), the high part before the low part; layout.py writes it.

namespace mlp {

// A ring buffer of weight blocks in shared memory: one producer thread copies the stream into it, the computing
// warpgroups consume it. Each stage has two mbarriers: ``full`` completes when a block has arrived, ``empty`` when all
// consumers have released it.
template <int PRODUCTS, int STAGES>
struct Ring {
  static constexpr int BYTES = (PRODUCTS == 3 ? 2 : 1) * PANEL_BYTES;
  u32 blocks, full, empty;        // addresses in shared memory
  int stage = 0, in_flight = -1;  // the next stage; the one that products under way still read, -1: none
  u32 phase = 0;

  __device__ __forceinline__ Ring(u32 blocks, u32 barriers)
      : blocks(blocks), full(barriers), empty(barriers + 8 * STAGES) {}

  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }

  // Copies the whole stream once for each tile of this thread block. Called by one thread.
  __device__ __forceinline__ void copy_all(const char* stream, int length, long long tiles) {
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      for (int block = 0; block < length; ++block) {
        mbarrier_wait(empty + 8 * stage, phase ^ 1);
        bulk_copy(blocks + stage * BYTES, stream + static_cast<long long>(block) * BYTES, BYTES, full + 8 * stage);
        advance();
      }
    }
  }

  // Waits until the next block has arrived; returns its matrix descriptor.
  __device__ __forceinline__ u64 wait_for_next() {
    mbarrier_wait(full + 8 * stage, phase);
    wgmma_fence();
    return matrix_descriptor(blocks + stage * BYTES);
  }

  // Lets the producer overwrite the block that products under way have read.
  __device__ __forceinline__ void release() {
    if (in_flight >= 0 && threadIdx.x % 32 == 0) mbarrier_arrive(empty + 8 * in_flight);
  }

  // Commits the products of the current block, waits for those of the block before and releases that one.
  __device__ __forceinline__ void commit() {
    wgmma_commit();
    wgmma_wait<1>();
    release();
    in_flight = stage;
    advance();
  }

  // Waits for all products and releases the last block.
  __device__ __forceinline__ void wait_for_all() {
    wgmma_wait<0>();
    release();
    in_flight = -1;
  }

  // sum += A B, A a panel in shared memory whose low part lies ``low`` bytes behind it, B the next block
  __device__ __forceinline__ void add(float (&sum)[VALUES], u32 panel, int low) {
    const u64 b = wait_for_next(), a = matrix_descriptor(panel);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if constexpr (PRODUCTS == 3) {
        wgmma(sum, matrix_descriptor(panel + low) + 2 * k, b + 2 * k);
        wgmma(sum, a + 2 * k, b + (PANEL_BYTES >> 4) + 2 * k);
        wgmma(sum, a + 2 * k, b + 2 * k);
      } else {
        wgmma(sum, a + 2 * k, b + 2 * k);
      }
    }
    commit();
  }

  // sum += A B, A in registers, B the next block
  __device__ __forceinline__ void add_registers(float (&sum)[VALUES], const u32* hi, const u32* lo) {
    const u64 b = wait_for_next();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if constexpr (PRODUCTS == 3) {
        wgmma_a_in_registers(sum, lo + 4 * k, b + 2 * k);
        wgmma_a_in_registers(sum, hi + 4 * k, b + (PANEL_BYTES >> 4) + 2 * k);
        wgmma_a_in_registers(sum, hi + 4 * k, b + 2 * k);
      } else {
        wgmma_a_in_registers(sum, hi + 4 * k, b + 2 * k);
      }
    }
    commit();
  }
};

}  // namespace mlp
