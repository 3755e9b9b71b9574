// From per-edge gradients to what an MD engine wants: forces, virials, per-atom shares.
#pragma once

#include "graph.h"
#include "neighbour_table.h"
#include "nequip_md_engine.h"
#include "network.h"

namespace nequip_md {

// Fill the results of the C header, in eV times energy_factor. Throws Error (BAD_RESULT) for values that are not
// finite.
//
// With g the gradient of edge i -> j: F_i += g, F_j -= g, virial -= r (x) g.
void tally(const NeighbourTable &table, const Graph &graph, const Evaluation &evaluation, int64_t num_all,
           double energy_factor, nequip_md_results &results);

}  // namespace nequip_md
