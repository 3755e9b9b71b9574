// The one place that knows CUDA: a device's stream, kernels compiled at run time, sequences of work replayed as one.
//
// gpu.cpp implements it where CUDA's headers were found at build time, gpu_absent.cpp elsewhere.
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

    // Makes the device and the engine's own stream current while it lives.
    class Scope {
     public:
        virtual ~Scope() = default;
    };
    virtual std::unique_ptr<Scope> enter() = 0;

    // The engine's stream waits for all that the caller's stream (a cudaStream_t; null: the default one) was given
    // before, and at the end of the scope the caller's stream waits for the engine's.
    virtual std::unique_ptr<Scope> order(void *stream) = 0;

    // Whether an address lies in this device's memory.
    virtual bool holds(const void *address) = 0;

    // Run a kernel of kernels.h, a warp for each of `count` indices.
    virtual void launch(const char *kernel, const void *arguments, int64_t count) = 0;

    // Wait for all work of the stream.
    virtual void synchronize() = 0;

    // Work that was recorded once and is launched as a whole. Tensors that the work allocates live as long as this.
    class Recording {
     public:
        virtual ~Recording() = default;
        virtual void replay() = 0;
    };

    // Record what `work` launches; it must not wait for the device. Throws what `work` or CUDA throws, and leaves the
    // stream usable.
    virtual std::unique_ptr<Recording> record(const std::function<void()> &work) = 0;

    // Bytes that could be allocated now; what the process keeps cached counts as free.
    virtual int64_t free_memory() = 0;

    // Bytes allocated now, and their peak since the last call of reset_peak().
    virtual int64_t allocated() = 0;
    virtual int64_t peak_allocated() = 0;
    virtual void reset_peak() = 0;
};

}  // namespace nequip_md
