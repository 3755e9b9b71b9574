#include "chunks.h"

#include <algorithm>
#include <vector>

#include <ATen/ops/cat.h>

#include "error.h"

namespace nequip_md {
namespace {

// Fewer edges than this fit into any GPU that runs a model at all: a failure then has another cause.
constexpr int64_t SMALLEST_LIMIT = 1 << 14;

}  // namespace

Evaluation Chunks::run(Network &network, const Graph &graph, double cutoff)
{
    for (;;) {
        try {
            num_pieces_ = 1;
            if (max_edges_ == 0 || graph.num_real_edges <= max_edges_) return network.run(graph);
            return in_pieces(network, graph, cutoff);
        } catch (const Error &) {
            throw;
        } catch (const std::exception &) {
            // The compiled model reports every failure of its device alike, so that memory can only be guessed.
            const int64_t now = max_edges_ == 0 ? graph.num_real_edges : std::min(max_edges_, graph.num_real_edges);
            if (!may_shrink_ || now / 2 < SMALLEST_LIMIT) throw;
            max_edges_ = now / 2;
        }
    }
}

Evaluation Chunks::in_pieces(Network &network, const Graph &graph, double cutoff)
{
    const int64_t nodes = graph.row_ptr.size(0) - 1 - PHANTOMS;
    const at::Tensor host = graph.row_ptr.to(at::kCPU);
    const int64_t *const offset = host.data_ptr<int64_t>();
    std::vector<at::Tensor> energies, gradients;
    for (int64_t first = 0; first < nodes;) {
        int64_t last = std::upper_bound(offset + first + 1, offset + nodes + 1, offset[first] + max_edges_) - offset - 1;
        last = std::max(last, first + 1);
        const Evaluation piece = network.run(some_centres(graph, first, last, offset[first], offset[last], cutoff));
        energies.push_back(piece.node_energy);
        gradients.push_back(piece.edge_gradient);
        first = last;
    }
    num_pieces_ = static_cast<int64_t>(energies.size());
    return {at::cat(energies), at::cat(gradients)};
}

}  // namespace nequip_md
