// Tensors and errors in C functions that AOTInductor calls for an operator. Uses PyTorch's stable C interface only.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>
#include <cstdio>
#include <initializer_list>

namespace nequip_md {

// Thrown within this file's guarded() functions. ``code`` is the error code of CUDA, 0 if the error is another one.
struct Failure {
  const char* reason;
  int code = 0;
};

inline void check(AOTITorchError code) {
  if (code != AOTI_TORCH_SUCCESS) throw Failure{"a call into PyTorch failed"};
}

// A contiguous tensor, which the caller owns.
struct Array {
  AtenTensorHandle handle;
  void* data;
  std::int64_t* sizes;
  std::int64_t dims;
  std::int32_t dtype;

  explicit Array(AtenTensorHandle tensor) : handle(tensor) {
    check(aoti_torch_get_data_ptr(tensor, &data));
    check(aoti_torch_get_sizes(tensor, &sizes));
    check(aoti_torch_get_dim(tensor, &dims));
    check(aoti_torch_get_dtype(tensor, &dtype));
    std::int64_t* strides = nullptr;
    check(aoti_torch_get_strides(tensor, &strides));
    std::int64_t expected = 1;
    for (std::int64_t d = dims - 1; d >= 0; --d) {
      if (sizes[d] > 1 && strides[d] != expected) throw Failure{"an argument is not contiguous"};
      expected *= sizes[d];
    }
  }

  std::int64_t size(int d) const { return sizes[d]; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// A new tensor of up to four dimensions; the caller owns it.
inline Array allocate(std::initializer_list<std::int64_t> sizes, std::int32_t dtype, std::int32_t device_type,
                      std::int32_t device, AtenTensorHandle* out) {
  std::int64_t strides[4];
  std::int64_t stride = 1;
  for (int d = static_cast<int>(sizes.size()) - 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= sizes.begin()[d];
  }
  check(aoti_torch_empty_strided(sizes.size(), sizes.begin(), strides, dtype, device_type, device, out));
  return Array(*out);
}

// Runs the body of such a function. A failure is printed and returned as an error code, which makes the compiled model
// throw an exception.
template <typename Body>
AOTITorchError guarded(const char* name, Body body) {
  try {
    body();
    return AOTI_TORCH_SUCCESS;
  } catch (const Failure& failure) {
    std::fprintf(stderr, "nequip_md::%s: %s", name, failure.reason);
    if (failure.code != 0) std::fprintf(stderr, " (CUDA error %d)", failure.code);
    std::fprintf(stderr, "\n");
  } catch (...) {
    std::fprintf(stderr, "nequip_md::%s: unknown failure\n", name);
  }
  return AOTI_TORCH_FAILURE;
}

}  // namespace nequip_md
