// Exchange of the features of ghosts for models with message passing: between the compiled code, which asks for it, and
// the caller, who sends them from one process to another.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "compute.h"
#include "neighbour_table.h"
#include "nequip_md_engine.h"

namespace nequip_md {

class Exchange {
 public:
    // library: path of an artifact's code, which must be loaded already and stay loaded.
    Exchange(const Compute &compute, const std::string &library);

    // Whether the code exchanges features.
    bool possible() const { return set_ != nullptr; }

    // Finds the rows of the caller's atoms in the table, which has been updated. Throws Error (BAD_INPUT) for atoms
    // that cannot be sent or received.
    void prepare(const nequip_md_exchange &given, bool lists_changed, const NeighbourTable &table);

    // The code exchanges features by the caller's function during the lifetime of this object, if there is one.
    class Scope {
     public:
        Scope(Exchange &exchange, bool wanted);
        ~Scope();
        Scope(const Scope &) = delete;
        Scope &operator=(const Scope &) = delete;

     private:
        Exchange &exchange_;
        const bool set_;
    };

    // Nonzero value that the caller's function has returned in this scope; 0 if it has not failed.
    int failure() const { return failure_; }

 private:
    using Function = int (*)(void *context, int reduce, void *features, int64_t owned, int64_t ghosts, int64_t width,
                             int bytes_each, void *stream);
    using Set = void (*)(Function function, void *context);

    static int call(void *exchange, int reduce, void *features, int64_t owned, int64_t ghosts, int64_t width,
                    int bytes_each, void *stream);
    void forward(RowArguments arguments, int64_t bytes_each);
    void backward(RowArguments arguments, int64_t bytes_each);
    bool transfer(bool reduce, int64_t bytes_each);
    void *room(at::Tensor &buffer, int64_t bytes) const;

    const Compute &compute_;
    Set set_ = nullptr;
    nequip_md_exchange given_{};
    int failure_ = 0;
    int64_t numbering_ = -1;  // of the table, that the rows below belong to

    // Rows of features, int64 on the device; -1 for atoms outside the model.
    at::Tensor sent_;     // [sent]
    at::Tensor targets_;  // [received + images]
    at::Tensor sources_;  // [images], rows that images are copies of
    at::Tensor sums_;     // rows to which gradients are added
    at::Tensor start_;    // [sums + 1], where the terms of each begin
    at::Tensor terms_;    // sent atoms by their number, and images by their row

    at::Tensor outgoing_, incoming_;  // bytes, in host memory, which a GPU's kernels read and write as well
};

}  // namespace nequip_md
