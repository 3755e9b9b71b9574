// Launches the kernels of mlp_kernels.cuh and contraction.cuh from the C functions that AOTInductor calls for the
// operators of kernels/hopper/operators.py.
//
// At export this file and the compiled kernels become a static library, which is linked into the artifact. INSTANCES
// names a file with a line {"kernel", bytes of shared memory} for each instance; KERNELS names the cubin.
#ifndef USE_CUDA
#define USE_CUDA
#endif
#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include <dlfcn.h>

#include "tensors.h"

__asm__(
    ".section .rodata\n"
    ".balign 16\n"
    "nequip_md_hopper_kernels:\n"
    ".incbin \"" KERNELS
    "\"\n"
    ".previous\n");
extern "C" __attribute__((visibility("hidden"))) const char nequip_md_hopper_kernels[];

namespace {

using nequip_md::Array;
using nequip_md::check;
using nequip_md::Failure;
using nequip_md::guarded;

constexpr int MAX_DYNAMIC_SHARED = 8, MULTIPROCESSORS = 16;  // attributes of a function, of a device
constexpr int SIDE = 64, MLP_THREADS = 384;                  // as in mlp_arithmetic.cuh
constexpr int LANES = 32, MOST_WARPS = 8;                    // as in contraction.cuh

struct Instance {
  const char* name;
  unsigned shared_bytes;
};
const Instance instances[] = {
#include INSTANCES
};

void check_driver(int code, const char* what) {
  if (code != 0) throw Failure{what, code};
}

// Functions of CUDA's driver, declared as in its documentation, since not every installation of PyTorch includes the
// header. They are found by name: Inductor would put the library first on the linker's command line, and the linker
// drops a library that stands before what needs it.
struct Driver {
  int (*load)(void** module, const void* image);
  int (*get)(void** function, void* module, const char* name);
  int (*set)(void* function, int attribute, int value);
  int (*attribute)(int* value, int attribute, int device);
  int (*launch)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                unsigned block_z, unsigned shared_bytes, void* stream, void** arguments, void** extra);

  Driver() {
    find("cuModuleLoadData", load);
    find("cuModuleGetFunction", get);
    find("cuFuncSetAttribute", set);
    find("cuDeviceGetAttribute", attribute);
    find("cuLaunchKernel", launch);
  }

 private:
  void* const library = dlopen("libcuda.so.1", RTLD_NOW);

  template <class Function>
  void find(const char* name, Function& function) {
    function = library ? reinterpret_cast<Function>(dlsym(library, name)) : nullptr;
    check_driver(function ? 0 : 1, "a function of CUDA's driver, libcuda.so.1, is not there");
  }
};

const Driver& driver() {
  static const Driver found;
  return found;
}

// The GPU that holds a tensor. Results are allocated and kernels are launched there.
class Device {
 public:
  explicit Device(const Array& tensor) { check(aoti_torch_get_device_index(tensor.handle, &index_)); }

  Array allocate(std::initializer_list<std::int64_t> sizes, std::int32_t dtype, AtenTensorHandle* out) const {
    return nequip_md::allocate(sizes, dtype, aoti_torch_device_type_cuda(), index_, out);
  }
  float* floats(std::initializer_list<std::int64_t> sizes, AtenTensorHandle* out) const {
    return allocate(sizes, aoti_torch_dtype_float32(), out).as<float>();
  }

  std::int64_t multiprocessors() const {
    int count = 0;
    check_driver(driver().attribute(&count, MULTIPROCESSORS, index_), "the number of multiprocessors is not known");
    return count;
  }

  void launch(std::int64_t instance, std::int64_t blocks, int threads, unsigned shared_bytes, void** arguments) const {
    void* stream = nullptr;
    check(aoti_torch_get_current_cuda_stream(index_, &stream));
    check_driver(driver().launch(function(instance), static_cast<unsigned>(blocks), 1, 1, threads, 1, 1, shared_bytes,
                                 stream, arguments, nullptr),
                 "a kernel cannot be launched");
  }

 private:
  void* function(std::int64_t instance) const {
    static std::mutex mutex;
    static std::map<std::int32_t, void*> modules;
    static std::map<std::pair<std::int64_t, std::int32_t>, void*> functions;
    const std::lock_guard<std::mutex> lock(mutex);
    void*& function = functions[{instance, index_}];
    if (!function) {
      void*& module = modules[index_];
      if (!module)
        check_driver(driver().load(&module, nequip_md_hopper_kernels), "the kernels cannot be loaded on this GPU");
      void* found = nullptr;
      check_driver(driver().get(&found, module, instances[instance].name), "a kernel is missing");
      check_driver(driver().set(found, MAX_DYNAMIC_SHARED, static_cast<int>(instances[instance].shared_bytes)),
                   "there is too little shared memory");
      function = found;
    }
    return function;
  }

  std::int32_t index_ = 0;
};

// A temporary tensor. It is deleted at the end of the scope, while kernels may still use it: the allocator reuses its
// memory in the order of the stream only.
class Scratch {
 public:
  Scratch(const Device& device, std::initializer_list<std::int64_t> sizes) : data_(device.floats(sizes, &handle_)) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { aoti_torch_delete_tensor_object(handle_); }
  float* data() const { return data_; }

 private:
  AtenTensorHandle handle_ = nullptr;
  float* data_;
};

struct Pointers {
  float* part[4];
};

Pointers pointers(std::initializer_list<AtenTensorHandle> tensors) {
  Pointers result{};
  int i = 0;
  for (AtenTensorHandle tensor : tensors) result.part[i++] = Array(tensor).as<float>();
  return result;
}

Pointers allocate_parts(std::int64_t count, const std::int64_t* widths, std::int64_t parts, const Device& device,
                        std::initializer_list<AtenTensorHandle*> out) {
  Pointers result{};
  int i = 0;
  for (AtenTensorHandle* handle : out) {
    const bool there = i < parts;
    result.part[i] = device.floats({there ? count : 0, there ? widths[i] : 0}, handle);
    ++i;
  }
  return result;
}

// How rows are distributed over thread blocks. While every thread block has a multiprocessor of its own, only one
// warpgroup of each computes, since a tile then takes half as long.
struct Tiles {
  int active;
  std::int64_t blocks;

  Tiles(std::int64_t count, const Device& device) {
    const std::int64_t most = device.multiprocessors();
    active = count <= most * SIDE ? 1 : 2;
    blocks = std::min(most, (count + active * SIDE - 1) / (active * SIDE));
  }

  void launch(const Device& device, std::int64_t instance, void** arguments) const {
    device.launch(instance, blocks, MLP_THREADS, instances[instance].shared_bytes, arguments);
  }
};

// Arguments of the kernels over the edges of each centre: weights [E, L, U], harmonics [E, M], row_ptr [N + 1].
struct Centres {
  Device device;
  std::int64_t edges, orders, channels, components, count;
  const float *weights, *harmonics;
  const std::int64_t* row_ptr;

  Centres(AtenTensorHandle w, AtenTensorHandle y, AtenTensorHandle rows) : Centres(Array(w), Array(y), Array(rows)) {}
  Centres(const Array& w, const Array& y, const Array& rows)
      : device(w),
        edges(w.size(0)),
        orders(w.size(1)),
        channels(w.size(2)),
        components(y.size(1)),
        count(rows.size(0) - 1),
        weights(w.as<float>()),
        harmonics(y.as<float>()),
        row_ptr(rows.as<std::int64_t>()) {}

  // Launches a thread block for each centre, with more warps if there are too few centres to fill the GPU.
  void launch(std::int64_t instance, void** arguments) const {
    if (count == 0) return;
    const int warps = count <= 2 * device.multiprocessors() ? MOST_WARPS : MOST_WARPS / 2;
    device.launch(instance, count, warps * LANES, instances[instance].shared_bytes / MOST_WARPS * warps, arguments);
  }
};

}  // namespace

extern "C" {

AOTITorchError aoti_torch_cuda_hopper_energy(AtenTensorHandle x0, AtenTensorHandle x1, AtenTensorHandle x2,
                                             AtenTensorHandle x3, AtenTensorHandle stream, AtenTensorHandle w1_info,
                                             AtenTensorHandle w2_info, AtenTensorHandle v, AtenTensorHandle r,
                                             AtenTensorHandle factor, const std::int64_t* widths, std::int64_t parts,
                                             std::int64_t inner, std::int64_t, std::int64_t, std::int64_t,
                                             std::int64_t instance, AtenTensorHandle* energy, AtenTensorHandle* dx0,
                                             AtenTensorHandle* dx1, AtenTensorHandle* dx2, AtenTensorHandle* dx3) {
  return guarded("hopper_energy", [&] {
    const Array first(x0);
    const Device device(first);
    const std::int64_t chunks = (inner + SIDE - 1) / SIDE;
    long long count = first.size(0);
    Pointers x = pointers({x0, x1, x2, x3});
    float* result = device.floats({count}, energy);
    Pointers dx = allocate_parts(count, widths, parts, device, {dx0, dx1, dx2, dx3});
    if (count == 0) return;
    const Tiles tiles(count, device);
    const Scratch scratch(device, {tiles.blocks * 2 * chunks * SIDE, SIDE});
    const float *blocks = Array(stream).as<float>(), *info1 = Array(w1_info).as<float>(),
                *info2 = Array(w2_info).as<float>(), *v_data = Array(v).as<float>(), *r_data = Array(r).as<float>(),
                *factor_data = Array(factor).as<float>();
    float* derivatives = scratch.data();
    int active = tiles.active;
    void* arguments[] = {&x,      &dx,          &blocks, &info1,       &info2, &v_data,
                         &r_data, &factor_data, &result, &derivatives, &count, &active};
    tiles.launch(device, instance, arguments);
  });
}

AOTITorchError aoti_torch_cuda_hopper_hidden(AtenTensorHandle x0, AtenTensorHandle x1, AtenTensorHandle x2,
                                             AtenTensorHandle x3, AtenTensorHandle stream, AtenTensorHandle w1_info,
                                             AtenTensorHandle w2_info, AtenTensorHandle w3_info, const std::int64_t*,
                                             std::int64_t, std::int64_t inner, std::int64_t outer, std::int64_t last,
                                             std::int64_t products, std::int64_t instance, AtenTensorHandle* out,
                                             AtenTensorHandle* y, AtenTensorHandle* d1, AtenTensorHandle* d2) {
  return guarded("hopper_hidden", [&] {
    const Array first(x0);
    const Device device(first);
    const std::int32_t derivative = products == 1 ? aoti_torch_dtype_float16() : aoti_torch_dtype_float32();
    long long count = first.size(0);
    Pointers x = pointers({x0, x1, x2, x3});
    float* h = device.floats({count, outer}, out);
    float* read = device.floats({last ? count : 0, last}, y);
    void* d1_data = device.allocate({count, inner}, derivative, d1).data;
    void* d2_data = device.allocate({count, outer}, derivative, d2).data;
    if (count == 0) return;
    const Tiles tiles(count, device);
    const float *blocks = Array(stream).as<float>(), *info1 = Array(w1_info).as<float>(),
                *info2 = Array(w2_info).as<float>(), *info3 = Array(w3_info).as<float>();
    int active = tiles.active;
    void* arguments[] = {&x, &blocks, &info1, &info2, &info3, &h, &d1_data, &d2_data, &read, &count, &active};
    tiles.launch(device, instance, arguments);
  });
}

AOTITorchError aoti_torch_cuda_hopper_hidden_backward(
    AtenTensorHandle g, AtenTensorHandle dy, AtenTensorHandle d1, AtenTensorHandle d2, AtenTensorHandle stream,
    AtenTensorHandle w1_info, AtenTensorHandle w2_info, AtenTensorHandle w3_info, const std::int64_t* widths,
    std::int64_t parts, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t instance,
    AtenTensorHandle* dx0, AtenTensorHandle* dx1, AtenTensorHandle* dx2, AtenTensorHandle* dx3) {
  return guarded("hopper_hidden_backward", [&] {
    const Array first(g);
    const Device device(first);
    long long count = first.size(0);
    Pointers dx = allocate_parts(count, widths, parts, device, {dx0, dx1, dx2, dx3});
    if (count == 0) return;
    const Tiles tiles(count, device);
    const float *g_data = first.as<float>(), *dy_data = Array(dy).as<float>(), *blocks = Array(stream).as<float>(),
                *info1 = Array(w1_info).as<float>(), *info2 = Array(w2_info).as<float>(),
                *info3 = Array(w3_info).as<float>();
    const void *d1_data = Array(d1).data, *d2_data = Array(d2).data;
    int active = tiles.active;
    void* arguments[] = {&dx, &g_data, &dy_data, &d1_data, &d2_data, &blocks, &info1, &info2, &info3, &count, &active};
    tiles.launch(device, instance, arguments);
  });
}

AOTITorchError aoti_torch_cuda_hopper_contract_gradient(AtenTensorHandle g0, AtenTensorHandle g1, AtenTensorHandle g2,
                                                        AtenTensorHandle g3, AtenTensorHandle w, AtenTensorHandle y,
                                                        AtenTensorHandle z0, AtenTensorHandle z1, AtenTensorHandle z2,
                                                        AtenTensorHandle z3, AtenTensorHandle row_ptr, std::int64_t,
                                                        std::int64_t instance, AtenTensorHandle* dw,
                                                        AtenTensorHandle* dy, AtenTensorHandle* dz) {
  return guarded("hopper_contract_gradient", [&] {
    const Centres centres(w, y, row_ptr);
    Pointers g = pointers({g0, g1, g2, g3}), z = pointers({z0, z1, z2, z3});
    float* dw_data = centres.device.floats({centres.edges, centres.orders, centres.channels}, dw);
    float* dy_data = centres.device.floats({centres.edges, centres.components}, dy);
    float* dz_data = centres.device.floats({centres.count, centres.components, centres.channels}, dz);
    const float *w_data = centres.weights, *y_data = centres.harmonics;
    const std::int64_t* rows = centres.row_ptr;
    void* arguments[] = {&g, &w_data, &y_data, &z, &rows, &dw_data, &dy_data, &dz_data};
    centres.launch(instance, arguments);
  });
}

AOTITorchError aoti_torch_cuda_hopper_contract_moment(AtenTensorHandle g, AtenTensorHandle w, AtenTensorHandle y,
                                                      AtenTensorHandle row_ptr, std::int64_t instance,
                                                      AtenTensorHandle* dz) {
  return guarded("hopper_contract_moment", [&] {
    const Centres centres(w, y, row_ptr);
    Pointers g_data = pointers({g});
    float* dz_data = centres.device.floats({centres.count, centres.components, centres.channels}, dz);
    const float *w_data = centres.weights, *y_data = centres.harmonics;
    const std::int64_t* rows = centres.row_ptr;
    void* arguments[] = {&g_data, &w_data, &y_data, &rows, &dz_data};
    centres.launch(instance, arguments);
  });
}

AOTITorchError aoti_torch_cuda_hopper_channel_product(AtenTensorHandle x, AtenTensorHandle y, AtenTensorHandle w,
                                                      AtenTensorHandle, AtenTensorHandle, AtenTensorHandle,
                                                      std::int64_t dim, std::int64_t instance, AtenTensorHandle* out) {
  return guarded("hopper_channel_product", [&] {
    const Array first(x), second(y), weights(w);
    const Device device(first);
    const std::int64_t channels = first.size(2);
    long long count = first.size(0);
    float* result = device.floats({count, dim, channels}, out);
    if (count == 0) return;
    const float *x_data = first.as<float>(), *y_data = second.as<float>(), *w_data = weights.as<float>();
    // small thread blocks spread few atoms over more multiprocessors
    const int threads = count * channels <= device.multiprocessors() * 256 ? LANES : 4 * LANES;
    void* arguments[] = {&x_data, &y_data, &w_data, &result, &count};
    device.launch(instance, (count * channels + threads - 1) / threads, threads, 0, arguments);
  });
}

}  // extern "C"
