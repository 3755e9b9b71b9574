#include "replay.h"

#include <exception>

namespace nequip_md {
namespace {

constexpr int64_t MOST_EDGES = 1 << 18;  // for more edges, kernels take longer than their launches

}  // namespace

bool Replay::worthwhile(int64_t num_edges) const { return compute_.gpu() && possible_ && num_edges <= MOST_EDGES; }

void Replay::forget()
{
    for (std::unique_ptr<Recorded> &recorded : recorded_) recorded.reset();
    num_nodes_ = num_edges_ = 0;
}

// Whether the arrays that recordings read have not moved and are large enough.
bool Replay::fits(const NeighbourTable &table) const
{
    return num_nodes_ > 0 && moves_ == table.num_moves() && table.num_centres() + MIN_PHANTOMS <= num_nodes_;
}

void Replay::record(const NeighbourTable &table, Network &network, const Tally::Wanted &wanted, int64_t num_edges)
{
    if (!fits(table) || num_edges > num_edges_) {
        forget();
        moves_ = table.num_moves();
        numbering_ = table.num_numberings();
        num_nodes_ = table.centre_capacity();
        num_edges_ = num_edges + num_edges / 32 + 32;  // the number fluctuates by about a percent in a liquid
        node_types_ = table.node_types(0, table.num_centres(), num_nodes_, table.atom_capacity());
    }
    auto recorded = std::make_unique<Recorded>(
        Recorded{Tally(compute_, num_nodes_, table.atom_capacity(), wanted, /*wide=*/false), nullptr});
    Tally &tally = recorded->tally;
    try {
        recorded->recording = compute_.gpu()->record([&] {
            tally.clear();
            const at::Tensor edge_offset = count_edges(compute_, table, num_nodes_);
            const Graph graph =
                build_graph(compute_, table, edge_offset, 0, num_nodes_, num_nodes_, num_edges_, node_types_);
            tally.add(table, edge_offset, graph, network.run(graph));
            tally.finish();
        });
        of(wanted) = std::move(recorded);
    } catch (const std::exception &) {
        possible_ = false;
        forget();
    }
}

const Tally *Replay::run(const NeighbourTable &table, const Tally::Wanted &wanted, const Tally::Fetched &fetched)
{
    if (!of(wanted) || !fits(table)) return nullptr;
    if (numbering_ != table.num_numberings()) {
        node_types_.copy_(table.node_types(0, table.num_centres(), num_nodes_, table.atom_capacity()));
        numbering_ = table.num_numberings();
    }
    Recorded &recorded = *of(wanted);
    recorded.recording->replay();
    // with more edges than there is room for, or forces beyond fixed point, the caller evaluates without a recording
    const bool right = recorded.tally.fetch(table.num_atoms(), fetched) && recorded.tally.num_edges() <= num_edges_;
    return right ? &recorded.tally : nullptr;
}

}  // namespace nequip_md
