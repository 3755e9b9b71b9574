// Exchange of ghosts' features in an artifact: the C function that compiled code calls for nequip_md::exchange_ghosts_,
// and the function by which an engine registers its callback.
//
// Both are in one file, which becomes a static library at export, so an artifact that calls the first has the second.
#ifdef ON_CUDA
#define USE_CUDA
#endif
#include "tensors.h"

namespace {

using Exchange = int (*)(void* context, int reduce, void* features, std::int64_t owned, std::int64_t ghosts,
                         std::int64_t width, int bytes_each, void* stream);

Exchange exchange = nullptr;
void* context = nullptr;

AOTITorchError exchange_ghosts(AtenTensorHandle features_, std::int64_t owned, bool reduce) {
  return nequip_md::guarded("exchange_ghosts_", [&] {
    const nequip_md::Array features(features_);
    const std::int64_t ghosts = features.size(0) - owned;
    if (exchange == nullptr) {
      if (ghosts == 0) return;
      throw nequip_md::Failure{
          "there are ghosts, and nobody exchanges their features: call nequip_md_artifact_set_exchange first"};
    }
    // called without ghosts too, since other ranks may wait for features of this one
    void* stream = nullptr;
#ifdef ON_CUDA
    std::int32_t device = 0;
    nequip_md::check(aoti_torch_get_device_index(features_, &device));
    nequip_md::check(aoti_torch_get_current_cuda_stream(device, &stream));
#endif
    const int bytes_each = features.dtype == aoti_torch_dtype_float64() ? 8 : 4;
    if (exchange(context, reduce, features.data, owned, ghosts, features.size(1), bytes_each, stream) != 0)
      throw nequip_md::Failure{"the exchange of the ghosts' features failed"};
  });
}

}  // namespace

extern "C" {

// The last argument stands for a result, of which there is none; see nequip_md/kernels/shims.py.
#ifdef ON_CUDA
AOTITorchError aoti_torch_cuda_exchange_ghosts_(AtenTensorHandle features, std::int64_t owned, std::int32_t reduce,
                                                void*) {
#else
AOTITorchError aoti_torch_cpu_exchange_ghosts_(AtenTensorHandle features, std::int64_t owned, std::int32_t reduce,
                                               void*) {
#endif
  return exchange_ghosts(features, owned, reduce != 0);
}

// Registers the function that exchanges features from now on; see docs/artifact.md.
__attribute__((visibility("default"))) void nequip_md_artifact_set_exchange(Exchange function, void* its_context) {
  exchange = function;
  context = its_context;
}

}  // extern "C"
