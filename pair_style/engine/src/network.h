// The compiled model: graph in, energies and gradient out.
#pragma once

#include <memory>
#include <string>

#include <ATen/core/Tensor.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include "graph.h"

namespace nequip_md {

struct Evaluation {
    at::Tensor node_energy;    // [nodes] float64, eV
    at::Tensor edge_gradient;  // [E, 3] float64, eV/angstrom: dE/d(edge vector)
};

class Network {
 public:
    // Loads the code of an artifact that open_package() has accepted. Throws Error (BAD_FILE).
    Network(const std::string &path, const at::Device &device, bool allow_tf32);

    // Throws Error (BAD_MODEL) if the artifact's outputs are not those of the contract.
    Evaluation run(const Graph &graph);

 private:
    std::string path_;
    bool allow_tf32_;
    std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader_;
};

}  // namespace nequip_md
