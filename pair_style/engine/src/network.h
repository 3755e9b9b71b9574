// The compiled model, a function from a graph to energies and gradients.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include <ATen/core/Tensor.h>
#include <torch/csrc/inductor/aoti_runner/model_container_runner.h>

#include "compute.h"
#include "exchange.h"
#include "graph.h"
#include "package.h"
#include "temporary_folder.h"

namespace nequip_md {

struct Evaluation {
    at::Tensor node_energy;    // [nodes] float64, eV
    at::Tensor edge_gradient;  // [E, 3] float64, eV/angstrom: dE/d(edge vector)
};

class Network {
 public:
    // Loads the code of an artifact. Throws Error (BAD_FILE).
    Network(const Package &package, const Compute &compute);

    // The connection through which the code exchanges features of ghosts.
    Exchange &exchange() { return *exchange_; }

    // Throws Error (BAD_MODEL) if the artifact's outputs are not those of the contract, Error (INTERNAL) if the
    // caller's exchange of features failed.
    Evaluation run(const Graph &graph);

 private:
    std::vector<at::Tensor> call(const Graph &graph);

    std::string path_;
    bool allow_tf32_;
    std::unique_ptr<TemporaryFolder> folder_;  // kept while files in it may still be read
    std::unique_ptr<torch::inductor::AOTIModelContainerRunner> runner_;
    std::optional<Exchange> exchange_;
};

}  // namespace nequip_md
