#include "gpu.h"

#include <string>
#include <unordered_map>
#include <vector>

#include <dlfcn.h>

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda.h>

#include "error.h"
#include "kernels_text.h"

namespace nequip_md {
namespace {

constexpr int THREADS = 128;
constexpr int WARP = 32;

// Finds functions of NVRTC and the driver by name in the libraries that torch uses, so that this library is linked to
// neither.
class Libraries {
 public:
    Libraries()
    {
        for (const char *name : {"libcaffe2_nvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libcuda.so.1"})
            if (void *handle = dlopen(name, RTLD_NOW | RTLD_GLOBAL)) handles_.push_back(handle);
    }

    template <typename Function>
    void find(const char *name, Function &function) const
    {
        for (void *handle : handles_)
            if ((function = reinterpret_cast<Function>(dlsym(handle, name)))) return;
        throw Error(NEQUIP_MD_BAD_DEVICE,
                    std::string("the CUDA function ") + name +
                        " was not found; is NVIDIA's driver installed, and this torch a build for CUDA?");
    }

 private:
    std::vector<void *> handles_;
};

// Functions of NVRTC, declared as in its documentation: torch's dependencies do not install its header.
using Program = void *;
struct Nvrtc {
    explicit Nvrtc(const Libraries &libraries)
    {
        libraries.find("nvrtcCreateProgram", create);
        libraries.find("nvrtcCompileProgram", compile);
        libraries.find("nvrtcGetProgramLogSize", log_size);
        libraries.find("nvrtcGetProgramLog", log);
        libraries.find("nvrtcGetCUBINSize", cubin_size);
        libraries.find("nvrtcGetCUBIN", cubin);
        libraries.find("nvrtcDestroyProgram", destroy);
    }
    int (*create)(Program *, const char *, const char *, int, const char *const *, const char *const *);
    int (*compile)(Program, int, const char *const *);
    int (*log_size)(Program, size_t *);
    int (*log)(Program, char *);
    int (*cubin_size)(Program, size_t *);
    int (*cubin)(Program, char *);
    int (*destroy)(Program *);
};

struct Driver {
    explicit Driver(const Libraries &libraries)
    {
        libraries.find("cuModuleLoadData", load);
        libraries.find("cuModuleUnload", unload);
        libraries.find("cuModuleGetFunction", get);
        libraries.find("cuLaunchKernel", launch);
        libraries.find("cuMemGetInfo_v2", memory);
        libraries.find("cuDeviceGetAttribute", attribute);
        libraries.find("cuPointerGetAttribute", pointer_attribute);
        libraries.find("cuEventCreate", create_event);
        libraries.find("cuEventRecord", record_event);
        libraries.find("cuStreamWaitEvent", wait_event);
        libraries.find("cuEventDestroy_v2", destroy_event);
    }
    CUresult (*load)(CUmodule *, const void *);
    CUresult (*unload)(CUmodule);
    CUresult (*get)(CUfunction *, CUmodule, const char *);
    CUresult (*launch)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,
                       void **, void **);
    CUresult (*memory)(size_t *, size_t *);
    CUresult (*attribute)(int *, CUdevice_attribute, CUdevice);
    CUresult (*pointer_attribute)(void *, CUpointer_attribute, CUdeviceptr);
    CUresult (*create_event)(CUevent *, unsigned);
    CUresult (*record_event)(CUevent, CUstream);
    CUresult (*wait_event)(CUstream, CUevent, unsigned);
    CUresult (*destroy_event)(CUevent);
};

void check(CUresult result, const char *what)
{
    if (result != CUDA_SUCCESS)
        throw Error(NEQUIP_MD_INTERNAL, std::string("CUDA error ") + std::to_string(result) + " in " + what);
}

std::vector<char> compile(const Nvrtc &nvrtc, const std::string &architecture)
{
    Program program = nullptr;
    const std::string target = "--gpu-architecture=" + architecture;
    const char *const options[] = {target.c_str(), "--std=c++17"};
    if (nvrtc.create(&program, KERNELS_TEXT, "kernels.h", 0, nullptr, nullptr) != 0)
        throw Error(NEQUIP_MD_BAD_DEVICE, "NVRTC cannot be used to compile the engine's kernels");
    if (nvrtc.compile(program, 2, options) != 0) {
        size_t size = 0;
        nvrtc.log_size(program, &size);
        std::string log(size, ' ');
        nvrtc.log(program, log.data());
        nvrtc.destroy(&program);
        throw Error(NEQUIP_MD_BAD_DEVICE,
                    "NVRTC does not compile the engine's kernels for " + architecture + ": " + log);
    }
    size_t size = 0;
    nvrtc.cubin_size(program, &size);
    std::vector<char> code(size);
    nvrtc.cubin(program, code.data());
    nvrtc.destroy(&program);
    return code;
}

class CudaScope : public Gpu::Scope {
 public:
    explicit CudaScope(const c10::cuda::CUDAStream &stream) : guard_(stream) {}

 private:
    c10::cuda::CUDAStreamGuard guard_;
};

class CudaOrder : public Gpu::Scope {
 public:
    CudaOrder(const Driver &driver, CUstream caller, CUstream engine)
        : driver_(driver), caller_(caller), engine_(engine)
    {
        check(driver.create_event(&event_, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
        try {
            wait(engine_, caller_);
        } catch (...) {
            driver_.destroy_event(event_);
            throw;
        }
    }
    ~CudaOrder() override
    {
        try {
            wait(caller_, engine_);
        } catch (const Error &) {  // the device has failed; the next call on it reports that
        }
        driver_.destroy_event(event_);
    }

 private:
    void wait(CUstream later, CUstream earlier)
    {
        check(driver_.record_event(event_, earlier), "cuEventRecord");
        check(driver_.wait_event(later, event_, 0), "cuStreamWaitEvent");
    }

    const Driver &driver_;
    CUstream caller_, engine_;
    CUevent event_ = nullptr;
};

class CudaRecording : public Gpu::Recording {
 public:
    at::cuda::CUDAGraph graph;
    void replay() override { graph.replay(); }
};

class CudaGpu : public Gpu {
 public:
    explicit CudaGpu(int index)
        : index_(static_cast<c10::DeviceIndex>(index)),
          driver_(libraries_),
          stream_(c10::cuda::getStreamFromPool(false, index_))
    {
        const CudaScope scope(stream_);
        synchronize();  // creates the device's context, in which the module is loaded
        int major = 0, minor = 0;
        check(driver_.attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, index), "cuDeviceGetAttribute");
        check(driver_.attribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, index), "cuDeviceGetAttribute");
        const std::string architecture = "sm_" + std::to_string(major) + std::to_string(minor);
        code_ = compile(Nvrtc(libraries_), architecture);
        check(driver_.load(&module_, code_.data()), "cuModuleLoadData");
    }
    ~CudaGpu() override
    {
        if (module_) driver_.unload(module_);
    }

    std::unique_ptr<Scope> enter() override { return std::make_unique<CudaScope>(stream_); }

    std::unique_ptr<Scope> order(void *stream) override
    {
        return std::make_unique<CudaOrder>(driver_, static_cast<CUstream>(stream), stream_.stream());
    }

    void launch(const char *kernel, const void *arguments, int64_t count) override
    {
        CUfunction &function = functions_[kernel];
        if (!function) check(driver_.get(&function, module_, kernel), kernel);
        long long indices = count;
        void *parameters[] = {const_cast<void *>(arguments), &indices};
        const auto blocks = static_cast<unsigned>((count * WARP + THREADS - 1) / THREADS);
        check(driver_.launch(function, blocks, 1, 1, THREADS, 1, 1, 0, stream_.stream(), parameters, nullptr), kernel);
    }

    void synchronize() override { stream_.synchronize(); }

    std::unique_ptr<Recording> record(const std::function<void()> &work) override
    {
        auto recording = std::make_unique<CudaRecording>();
        recording->graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
        try {
            work();
        } catch (...) {
            try {
                recording->graph.capture_end();
            } catch (...) {  // the exception that ended the recording has the better message
            }
            throw;
        }
        recording->graph.capture_end();
        return recording;
    }

    bool holds(const void *address) override
    {
        const auto pointer = reinterpret_cast<CUdeviceptr>(address);
        unsigned kind = 0;
        int device = -1;
        // the first call fails for addresses of ordinary host memory, which CUDA does not know
        return driver_.pointer_attribute(&kind, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, pointer) == CUDA_SUCCESS &&
               kind == CU_MEMORYTYPE_DEVICE &&
               driver_.pointer_attribute(&device, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, pointer) == CUDA_SUCCESS &&
               device == index_;
    }

    int64_t free_memory() override
    {
        size_t free = 0, total = 0;
        check(driver_.memory(&free, &total), "cuMemGetInfo");
        const auto &statistics = c10::cuda::CUDACachingAllocator::getDeviceStats(index_);
        return static_cast<int64_t>(free) + statistics.reserved_bytes[0].current -
               statistics.allocated_bytes[0].current;
    }
    int64_t allocated() override
    {
        return c10::cuda::CUDACachingAllocator::getDeviceStats(index_).allocated_bytes[0].current;
    }
    int64_t peak_allocated() override
    {
        return c10::cuda::CUDACachingAllocator::getDeviceStats(index_).allocated_bytes[0].peak;
    }
    void reset_peak() override { c10::cuda::CUDACachingAllocator::resetPeakStats(index_); }

 private:
    c10::DeviceIndex index_;
    Libraries libraries_;
    Driver driver_;
    c10::cuda::CUDAStream stream_;
    std::vector<char> code_;
    CUmodule module_ = nullptr;
    std::unordered_map<std::string, CUfunction> functions_;
};

}  // namespace

bool Gpu::supported() { return true; }

std::unique_ptr<Gpu> Gpu::open(int index) { return std::make_unique<CudaGpu>(index); }

}  // namespace nequip_md
