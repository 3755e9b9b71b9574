#include "exchange.h"

#include <dlfcn.h>

namespace nequip_md {

Exchange::Exchange(const std::string &library)
{
    void *const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_NOLOAD);
    if (!handle) return;
    set_ = reinterpret_cast<Set>(dlsym(handle, "nequip_md_artifact_set_exchange"));
    dlclose(handle);
}

Exchange::Scope::Scope(Exchange &exchange, nequip_md_exchange function, void *context) : exchange_(exchange)
{
    exchange_.function_ = exchange_.possible() ? function : nullptr;
    exchange_.context_ = context;
    exchange_.failure_ = 0;
    if (exchange_.function_) exchange_.set_(call, &exchange_);
}

Exchange::Scope::~Scope()
{
    if (exchange_.function_) exchange_.set_(nullptr, nullptr);
    exchange_.function_ = nullptr;
}

int Exchange::call(void *exchange, int reduce, void *features, int64_t owned, int64_t ghosts, int64_t width,
                   int bytes_each, void *stream)
{
    Exchange &self = *static_cast<Exchange *>(exchange);
    const int result = self.function_(self.context_, reduce, features, owned, ghosts, width, bytes_each, stream);
    if (result != 0) self.failure_ = result;
    return result;
}

}  // namespace nequip_md
