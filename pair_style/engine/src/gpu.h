// Interface to CUDA: a device's stream, kernels compiled at run time, and recordings (CUDA graphs).
//
// gpu.cpp implements it if CUDA's headers are found at build time, otherwise gpu_absent.cpp.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace nequip_md {

class Gpu {
 public:
    // Whether this library was built to use GPUs.
    static bool supported();

    // Throws Error (BAD_DEVICE) if the kernels cannot be compiled, or this library was built without CUDA.
    static std::unique_ptr<Gpu> open(int index);

    virtual ~Gpu() = default;

    // Makes the device and the engine's own stream current during the lifetime of the returned object.
    class Scope {
     public:
        virtual ~Scope() = default;
    };
    virtual std::unique_ptr<Scope> enter() = 0;

    // Orders the engine's stream after all previous work in the caller's stream (a cudaStream_t; null: the default
    // stream). At the end of the returned object's lifetime the caller's stream is ordered after the engine's.
    virtual std::unique_ptr<Scope> order(void *stream) = 0;

    // Whether an address is in this device's memory.
    virtual bool holds(const void *address) = 0;

    // Runs a kernel of kernels.h with a warp for each of `count` indices.
    virtual void launch(const char *kernel, const void *arguments, int64_t count) = 0;

    // Waits for all work of the stream.
    virtual void synchronize() = 0;

    // Work that was recorded once and is launched as a whole. It keeps the tensors that the work allocates.
    class Recording {
     public:
        virtual ~Recording() = default;
        virtual void replay() = 0;
    };

    // Records the kernels that `work` launches; `work` must not wait for the device. Passes on exceptions of `work` and
    // CUDA, after which the stream is still usable.
    virtual std::unique_ptr<Recording> record(const std::function<void()> &work) = 0;

    // Bytes that could be allocated now, including those that the process keeps cached.
    virtual int64_t free_memory() = 0;

    // Bytes that are allocated now, and their maximum since the last call of reset_peak().
    virtual int64_t allocated() = 0;
    virtual int64_t peak_allocated() = 0;
    virtual void reset_peak() = 0;
};

}  // namespace nequip_md
