// Runs the kernels of kernels.h, either in threads of the CPU or on a GPU.
#pragma once

#include <cstdint>
#include <memory>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include "gpu.h"
#include "kernels.h"

namespace nequip_md {

class Compute {
 public:
    // Compiles the kernels if the device is a GPU. Throws Error (BAD_DEVICE).
    explicit Compute(const at::Device &device) : device_(device)
    {
        if (device.is_cuda()) gpu_ = Gpu::open(device.index());
    }

    const at::Device &device() const { return device_; }
    Gpu *gpu() const { return gpu_.get(); }  // null on the CPU
    std::unique_ptr<Gpu::Scope> enter() const { return gpu_ ? gpu_->enter() : nullptr; }
    int64_t lanes() const { return gpu_ ? 32 : LANES; }  // threads that share an index
    at::TensorOptions integers() const { return at::TensorOptions().dtype(at::kLong).device(device_); }
    at::TensorOptions doubles() const { return at::TensorOptions().dtype(at::kDouble).device(device_); }

    // Runs kernel(arguments, index) for 0 <= index < count, on a GPU in the order of its stream.
    template <typename Arguments>
    void run(const char *name, void (*kernel)(const Arguments &, Int64), const Arguments &arguments,
             int64_t count) const
    {
        if (count <= 0) return;
        if (gpu_) {
            gpu_->launch(name, &arguments, count);
            return;
        }
        constexpr int64_t GRAIN = 64;
        at::parallel_for(0, count, GRAIN, [&](int64_t begin, int64_t end) {
            for (int64_t index = begin; index < end; ++index) kernel(arguments, index);
        });
    }

 private:
    at::Device device_;
    std::unique_ptr<Gpu> gpu_;
};

// The elements of a tensor of int64, as the kernels take them.
inline Int64 *longs(const at::Tensor &tensor) { return reinterpret_cast<Int64 *>(tensor.data_ptr<int64_t>()); }

#define NEQUIP_MD_RUN(compute, kernel, arguments, count) (compute).run(#kernel "_kernel", kernel, arguments, count)

}  // namespace nequip_md
