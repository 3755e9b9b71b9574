// Connects the compiled code of models with message passing, which needs features of ghosts, to the caller's callback.
#pragma once

#include <cstdint>
#include <string>

#include "nequip_md_engine.h"

namespace nequip_md {

class Exchange {
 public:
    // library: path of an artifact's code, which must be loaded already and stay loaded.
    explicit Exchange(const std::string &library);

    // Whether the code exchanges features.
    bool possible() const { return set_ != nullptr; }

    // The code calls the caller's function during the lifetime of this object. If `function` is null, or the code exchanges nothing, nothing is done.
    class Scope {
     public:
        Scope(Exchange &exchange, nequip_md_exchange function, void *context);
        ~Scope();
        Scope(const Scope &) = delete;
        Scope &operator=(const Scope &) = delete;

     private:
        Exchange &exchange_;
    };

    // Nonzero value that the caller's function has returned; 0 if it has not failed.
    int failure() const { return failure_; }

 private:
    using Function = int (*)(void *context, int reduce, void *features, int64_t owned, int64_t ghosts, int64_t width,
                             int bytes_each, void *stream);
    using Set = void (*)(Function function, void *context);

    static int call(void *exchange, int reduce, void *features, int64_t owned, int64_t ghosts, int64_t width,
                    int bytes_each, void *stream);

    Set set_ = nullptr;
    nequip_md_exchange function_ = nullptr;
    void *context_ = nullptr;
    int failure_ = 0;
};

}  // namespace nequip_md
