// Launches the kernels of perceptron.cuh, behind the C functions that AOTInductor calls for the operators of ops/hopper.py.
//
// This file and the compiled kernels become a static library at export, which is linked into the artifact. INSTANCES names a
// file with a line {"kernel", bytes of shared memory} for each instance, KERNELS the compiled ones. A function returns 0, or
// prints the reason and returns 1, which the compiled model turns into an exception.
#ifndef USE_CUDA
#define USE_CUDA
#endif
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <map>
#include <mutex>
#include <utility>

// From the documentation of CUDA's driver interface, whose header not every installation of PyTorch brings along.
extern "C" {
int cuModuleLoadData(void** module, const void* image);
int cuModuleGetFunction(void** function, void* module, const char* name);
int cuFuncSetAttribute(void* function, int attribute, int value);
int cuDeviceGetAttribute(int* value, int attribute, int device);
int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, void* stream, void** arguments, void** extra);
}

__asm__(
    ".section .rodata\n"
    ".balign 16\n"
    "nequip_md_perceptrons:\n"
    ".incbin \"" KERNELS "\"\n"
    ".previous\n");
extern "C" __attribute__((visibility("hidden"))) const char nequip_md_perceptrons[];

namespace {

constexpr int MAX_DYNAMIC_SHARED = 8, MULTIPROCESSORS = 16;  // attributes of a function, of a device
constexpr int THREADS = 384, SIDE = 64;

struct Instance {
  const char* name;
  unsigned shared_bytes;
};
const Instance instances[] = {
#include INSTANCES
};

struct Failure {
  const char* reason;
  int code = 0;
};

void check(AOTITorchError code) {
  if (code != AOTI_TORCH_SUCCESS) throw Failure{"a call into PyTorch failed"};
}

void check_driver(int code, const char* what) {
  if (code != 0) throw Failure{what, code};
}

// A tensor, borrowed. Inductor hands on contiguous ones, as the operators' references make them.
struct Array {
  float* data = nullptr;
  std::int64_t rows = 0;
  std::int32_t device = 0;

  explicit Array(AtenTensorHandle tensor) {
    void* pointer = nullptr;
    std::int64_t *sizes = nullptr, *strides = nullptr, dims = 0;
    check(aoti_torch_get_data_ptr(tensor, &pointer));
    check(aoti_torch_get_sizes(tensor, &sizes));
    check(aoti_torch_get_strides(tensor, &strides));
    check(aoti_torch_get_dim(tensor, &dims));
    check(aoti_torch_get_device_index(tensor, &device));
    std::int64_t expected = 1;
    for (std::int64_t d = dims - 1; d >= 0; --d) {
      if (sizes[d] > 1 && strides[d] != expected) throw Failure{"an argument is not contiguous"};
      expected *= sizes[d];
    }
    data = static_cast<float*>(pointer);
    rows = dims > 0 ? sizes[0] : 1;
  }
};

Array allocate(std::initializer_list<std::int64_t> sizes, std::int32_t dtype, std::int32_t device, AtenTensorHandle* out) {
  std::int64_t strides[2] = {1, 1};
  if (sizes.size() == 2) strides[0] = sizes.begin()[1];
  check(aoti_torch_empty_strided(sizes.size(), sizes.begin(), strides, dtype, aoti_torch_device_type_cuda(), device, out));
  return Array(*out);
}

struct Pointers {
  float* part[4];
};

int multiprocessors(std::int32_t device) {
  int count = 0;
  check_driver(cuDeviceGetAttribute(&count, MULTIPROCESSORS, device), "the number of multiprocessors is not known");
  return count;
}

void* function_of(std::int64_t instance, std::int32_t device) {
  static std::mutex mutex;
  static std::map<std::int32_t, void*> modules;
  static std::map<std::pair<std::int64_t, std::int32_t>, void*> functions;
  const std::lock_guard<std::mutex> lock(mutex);
  void*& function = functions[{instance, device}];
  if (!function) {
    void*& module = modules[device];
    if (!module) check_driver(cuModuleLoadData(&module, nequip_md_perceptrons), "the kernels cannot be loaded on this GPU");
    void* found = nullptr;
    check_driver(cuModuleGetFunction(&found, module, instances[instance].name), "a kernel is missing");
    check_driver(cuFuncSetAttribute(found, MAX_DYNAMIC_SHARED, static_cast<int>(instances[instance].shared_bytes)),
                 "there is too little shared memory");
    function = found;
  }
  return function;
}

// One warpgroup computes in each program while that leaves a multiprocessor for every program: a tile then takes half as long.
struct Grid {
  int active, programs;

  Grid(std::int64_t count, std::int32_t device) {
    const std::int64_t most = multiprocessors(device);
    active = count <= most * SIDE ? 1 : 2;
    programs = static_cast<int>(std::min(most, (count + active * SIDE - 1) / (active * SIDE)));
  }
};

void launch(std::int64_t instance, const Grid& grid, std::int32_t device, void** arguments) {
  void* stream = nullptr;
  check(aoti_torch_get_current_cuda_stream(device, &stream));
  check_driver(cuLaunchKernel(function_of(instance, device), grid.programs, 1, 1, THREADS, 1, 1, instances[instance].shared_bytes, stream,
                              arguments, nullptr),
               "a kernel cannot be launched");
}

template <typename Body>
AOTITorchError guarded(const char* name, Body body) {
  try {
    body();
    return AOTI_TORCH_SUCCESS;
  } catch (const Failure& failure) {
    std::fprintf(stderr, "nequip_md::%s: %s (CUDA error %d)\n", name, failure.reason, failure.code);
  } catch (...) {
    std::fprintf(stderr, "nequip_md::%s: an unexpected error\n", name);
  }
  return AOTI_TORCH_FAILURE;
}

Pointers pointers(std::initializer_list<AtenTensorHandle> tensors) {
  Pointers result{};
  int i = 0;
  for (AtenTensorHandle tensor : tensors) result.part[i++] = Array(tensor).data;
  return result;
}

Pointers allocate_parts(std::int64_t count, const std::int64_t* widths, std::int64_t parts, std::int32_t device,
                        std::initializer_list<AtenTensorHandle*> out) {
  Pointers result{};
  int i = 0;
  for (AtenTensorHandle* handle : out) {
    const bool there = i < parts;
    result.part[i] = allocate({there ? count : 0, there ? widths[i] : 0}, aoti_torch_dtype_float32(), device, handle).data;
    ++i;
  }
  return result;
}

}  // namespace

extern "C" {

AOTITorchError aoti_torch_cuda_hopper_energy(
    AtenTensorHandle x0, AtenTensorHandle x1, AtenTensorHandle x2, AtenTensorHandle x3, AtenTensorHandle stream, AtenTensorHandle w1_info,
    AtenTensorHandle w2_info, AtenTensorHandle v, AtenTensorHandle r, AtenTensorHandle factor, const std::int64_t* widths,
    std::int64_t parts, std::int64_t inner, std::int64_t, std::int64_t, std::int64_t, std::int64_t instance, AtenTensorHandle* energy,
    AtenTensorHandle* dx0, AtenTensorHandle* dx1, AtenTensorHandle* dx2, AtenTensorHandle* dx3) {
  return guarded("hopper_energy", [&] {
    const Array first(x0);
    const std::int32_t device = first.device;
    const std::int64_t chunks = (inner + SIDE - 1) / SIDE;
    long long count = first.rows;
    Pointers x = pointers({x0, x1, x2, x3});
    float* result = allocate({first.rows}, aoti_torch_dtype_float32(), device, energy).data;
    Pointers dx = allocate_parts(first.rows, widths, parts, device, {dx0, dx1, dx2, dx3});
    if (count == 0) return;
    const Grid grid(count, device);
    AtenTensorHandle scratch_handle = nullptr;
    float* scratch = allocate({grid.programs * 2 * chunks * SIDE, SIDE}, aoti_torch_dtype_float32(), device, &scratch_handle).data;
    const float *blocks = Array(stream).data, *info1 = Array(w1_info).data, *info2 = Array(w2_info).data, *v_data = Array(v).data,
                *r_data = Array(r).data, *factor_data = Array(factor).data;
    int active = grid.active;
    void* arguments[] = {&x, &dx, &blocks, &info1, &info2, &v_data, &r_data, &factor_data, &result, &scratch, &count, &active};
    launch(instance, grid, device, arguments);
    // the memory is used again in the order of the stream only
    check(aoti_torch_delete_tensor_object(scratch_handle));
  });
}

AOTITorchError aoti_torch_cuda_hopper_hidden(
    AtenTensorHandle x0, AtenTensorHandle x1, AtenTensorHandle x2, AtenTensorHandle x3, AtenTensorHandle stream, AtenTensorHandle w1_info,
    AtenTensorHandle w2_info, AtenTensorHandle w3_info, const std::int64_t*, std::int64_t, std::int64_t inner, std::int64_t outer,
    std::int64_t last, std::int64_t products, std::int64_t instance, AtenTensorHandle* out, AtenTensorHandle* y, AtenTensorHandle* d1,
    AtenTensorHandle* d2) {
  return guarded("hopper_hidden", [&] {
    const Array first(x0);
    const std::int32_t device = first.device, single = aoti_torch_dtype_float32();
    const std::int32_t derivative = products == 1 ? aoti_torch_dtype_float16() : single;
    long long count = first.rows;
    Pointers x = pointers({x0, x1, x2, x3});
    float* h = allocate({first.rows, outer}, single, device, out).data;
    float* read = allocate({last ? first.rows : 0, last}, single, device, y).data;
    float* d1_data = allocate({first.rows, inner}, derivative, device, d1).data;
    float* d2_data = allocate({first.rows, outer}, derivative, device, d2).data;
    if (count == 0) return;
    const Grid grid(count, device);
    const float *blocks = Array(stream).data, *info1 = Array(w1_info).data, *info2 = Array(w2_info).data, *info3 = Array(w3_info).data;
    int active = grid.active;
    void* arguments[] = {&x, &blocks, &info1, &info2, &info3, &h, &d1_data, &d2_data, &read, &count, &active};
    launch(instance, grid, device, arguments);
  });
}

AOTITorchError aoti_torch_cuda_hopper_hidden_backward(
    AtenTensorHandle g, AtenTensorHandle dy, AtenTensorHandle d1, AtenTensorHandle d2, AtenTensorHandle stream, AtenTensorHandle w1_info,
    AtenTensorHandle w2_info, AtenTensorHandle w3_info, const std::int64_t* widths, std::int64_t parts, std::int64_t, std::int64_t,
    std::int64_t, std::int64_t, std::int64_t instance, AtenTensorHandle* dx0, AtenTensorHandle* dx1, AtenTensorHandle* dx2,
    AtenTensorHandle* dx3) {
  return guarded("hopper_hidden_backward", [&] {
    const Array first(g);
    const std::int32_t device = first.device;
    long long count = first.rows;
    Pointers dx = allocate_parts(first.rows, widths, parts, device, {dx0, dx1, dx2, dx3});
    if (count == 0) return;
    const Grid grid(count, device);
    const float *g_data = first.data, *dy_data = Array(dy).data, *d1_data = Array(d1).data, *d2_data = Array(d2).data,
                *blocks = Array(stream).data, *info1 = Array(w1_info).data, *info2 = Array(w2_info).data, *info3 = Array(w3_info).data;
    int active = grid.active;
    void* arguments[] = {&dx, &g_data, &dy_data, &d1_data, &d2_data, &blocks, &info1, &info2, &info3, &count, &active};
    launch(instance, grid, device, arguments);
  });
}

}  // extern "C"
