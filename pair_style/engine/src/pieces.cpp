#include "pieces.h"

#include <algorithm>
#include <string>

#include "error.h"

namespace nequip_md {
namespace {

constexpr int64_t PROBE = 1 << 15;     // edges of the first piece, which measures the memory that an edge takes
constexpr int64_t BUSY = 1 << 20;      // edges of a piece with which a GPU is as fast as with more
constexpr int64_t SMALLEST = 1 << 14;  // edges of a piece that fits into any GPU; if it fails, the cause is not memory
constexpr double USABLE = 0.8;         // fraction of the free memory; the rest is for fragmentation and other processes

}  // namespace

Pieces::Pieces(const Compute &compute, int64_t max_edges, bool divisible)
    : compute_(compute), max_edges_(max_edges), divisible_(divisible), learned_(!compute.gpu() || max_edges > 0)
{
}

void Pieces::run_piece(const NeighbourTable &table, Network &network, Tally &tally, const at::Tensor &edge_offset,
                       int64_t first, int64_t count, int64_t num_edges)
{
    const bool whole = count == table.num_centres();
    const int64_t num_nodes = count + MIN_PHANTOMS;
    if (!whole || types_of_ != table.num_numberings()) {
        node_types_ = table.node_types(first, count, num_nodes, table.num_atoms());
        types_of_ = whole ? table.num_numberings() : -1;
    }
    const Graph graph = build_graph(compute_, table, edge_offset, first, count, num_nodes, num_edges, node_types_);
    const Evaluation evaluation = network.run(graph);
    tally.add(table, edge_offset, graph, evaluation);
    num_evaluated_ += graph.num_edges();
    if (!divisible_) kept_ = {edge_offset, graph, evaluation};
}

bool Pieces::add_again(const NeighbourTable &table, Tally &tally) const
{
    if (kept_) tally.add(table, kept_->edge_offset, kept_->graph, kept_->evaluation);
    return kept_.has_value();
}

void Pieces::learn_limit(int64_t bytes, int64_t num_edges)
{
    learned_ = true;
    const double fitting = USABLE * compute_.gpu()->free_memory() / (static_cast<double>(bytes) / num_edges + 1);
    max_edges_ = std::clamp(static_cast<int64_t>(fitting), SMALLEST, BUSY);
}

void Pieces::run(const NeighbourTable &table, Network &network, Tally &tally)
{
    const int64_t centres = table.num_centres();
    const at::Tensor edge_offset = count_edges(compute_, table, centres);
    num_pieces_ = num_evaluated_ = 0;
    kept_.reset();
    if (compute_.gpu() == nullptr && (max_edges_ == 0 || !divisible_)) {
        num_edges_ = edge_offset.data_ptr<int64_t>()[centres];
        run_piece(table, network, tally, edge_offset, 0, centres, num_edges_);
        num_pieces_ = 1;
        return;
    }
    const at::Tensor host = edge_offset.cpu();
    const int64_t *const offset = host.data_ptr<int64_t>();
    num_edges_ = offset[centres];
    for (int64_t first = 0; first < centres || num_pieces_ == 0;) {
        const bool probe = divisible_ && !learned_ && num_edges_ > BUSY;
        const int64_t limit = !divisible_ ? num_edges_ : probe ? PROBE : max_edges_ > 0 ? max_edges_ : num_edges_;
        int64_t last = std::upper_bound(offset + first, offset + centres + 1, offset[first] + limit) - offset - 1;
        last = std::min(std::max(last, first + 1), centres);
        const int64_t edges = offset[last] - offset[first];
        if (probe) compute_.gpu()->reset_peak();
        const int64_t before = probe ? compute_.gpu()->allocated() : 0;
        try {
            run_piece(table, network, tally, edge_offset, first, last - first, edges);
        } catch (const Error &) {
            throw;
        } catch (const std::exception &error) {
            // The compiled model reports all failures of its device alike, so lack of memory is only a guess.
            if (!compute_.gpu()) throw;
            if (!divisible_ || edges / 2 < SMALLEST)
                throw Error(
                    NEQUIP_MD_INTERNAL,
                    "the model failed on the GPU with " + std::to_string(edges) + " edges at a time and " +
                        std::to_string(compute_.gpu()->free_memory() >> 20) + " MiB of its memory free (" +
                        first_line(error.what()) +
                        "); if that is too little, end what else runs there, use more GPUs or one with more memory");
            max_edges_ = edges / 2;
            learned_ = true;
            continue;
        }
        if (probe) learn_limit(compute_.gpu()->peak_allocated() - before, std::max<int64_t>(edges, 1));
        ++num_pieces_;
        first = last;
    }
}

}  // namespace nequip_md
