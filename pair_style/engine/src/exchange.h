// The features of ghosts, which models with message passing ask the caller's program for while they run.
#pragma once

#include <cstdint>
#include <string>

#include "nequip_md_engine.h"

namespace nequip_md {

class Exchange {
 public:
    // library: path of an artifact's code, which is loaded and stays so.
    explicit Exchange(const std::string &library);

    // Whether the code asks at all.
    bool possible() const { return set_ != nullptr; }

    // While it lives, the code calls the caller's function. `function` may be null: then nothing is done.
    class Scope {
     public:
        Scope(Exchange &exchange, nequip_md_exchange function, void *context);
        ~Scope();
        Scope(const Scope &) = delete;
        Scope &operator=(const Scope &) = delete;

     private:
        Exchange &exchange_;
    };

    // What the caller's function has returned that was not 0; 0 if it has not failed.
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
