// Tensors on memory that belongs to the caller.
#pragma once

#include <string>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include "compute.h"
#include "error.h"

namespace nequip_md {

// on_gpu: whether the array is in the memory of the GPU that the model runs on, else in host memory. `name` is for
// messages. Throws Error (BAD_INPUT) if it is not there.
template <typename Value>
at::Tensor caller_array(const Compute &compute, bool on_gpu, const Value *array, at::IntArrayRef sizes,
                        const char *name)
{
    const auto options = at::TensorOptions()
                             .dtype(c10::CppTypeToScalarType<Value>())
                             .device(on_gpu ? compute.device() : at::Device(at::kCPU));
    if (c10::multiply_integers(sizes) == 0) return at::empty(sizes, options);
    if (on_gpu && !compute.gpu()->holds(array))
        throw Error(NEQUIP_MD_BAD_INPUT, std::string("evaluate: memory says that ") + name +
                                             " lies on the GPU that the model runs on, and it does not");
    return at::from_blob(const_cast<Value *>(array), sizes, options);
}

}  // namespace nequip_md
