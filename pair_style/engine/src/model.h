// One loaded potential: metadata, compiled network and neighbour table.
#pragma once

#include <string>

#include <ATen/core/Tensor.h>

#include "chunks.h"
#include "metadata.h"
#include "neighbour_table.h"
#include "nequip_md_engine.h"
#include "network.h"

namespace nequip_md {

class Model {
 public:
    Model(const std::string &path, const nequip_md_options &options);

    const Metadata &metadata() const { return metadata_; }
    void evaluate(const nequip_md_system &system, nequip_md_results &results);

 private:
    Metadata metadata_;
    at::Device device_;
    int num_threads_;
    double energy_factor_;
    Network network_;
    Chunks chunks_;
    NeighbourTable table_;
};

}  // namespace nequip_md
