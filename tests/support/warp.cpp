// C functions that run the engine's kernels (kernels.h) for test_warp.py: with 32 threads for each warp, as on a GPU,
// if WARP is defined; otherwise as on a CPU.
#include <algorithm>
#include <numeric>
#include <vector>

#ifdef WARP
#define __CUDACC_RTC__
#include "gpu.h"
#include "kernels.h"

template <typename Arguments>
bool launch(void (*kernel)(Arguments, long long), Arguments arguments, long long count) {
  constexpr int THREADS = 128;  // as in gpu.cpp
  void* both[] = {&arguments, &count};
  return emulated::launch(kernel, both, (count * 32 + THREADS - 1) / THREADS, THREADS);
}
#define RUN(name, arguments, count) \
  if (!launch(name##_kernel, arguments, count)) return false
#else
#include <cmath>

#include "kernels.h"

#define RUN(name, arguments, count) \
  for (long long index = 0; index < (count); ++index) nequip_md::name(arguments, index)
#endif

using nequip_md::Int64;

// cells: number of cells along every axis, 0 for a search without cells. Arrays are as in kernels.h; list has room for
// all pairs. The gradients are 0.1 times the vectors. Returns false if the threads of a GPU wait for each other.
extern "C" bool run(const nequip_md::Atoms* atoms, int num_atoms, int num_centres, int cells, double extent,
                    double skin, Int64* list_offset, int* list, Int64 num_nodes, Int64 num_edges, double padding,
                    double* vectors, Int64* nodes, int* neighbour_atom, Int64* row_ptr, Int64* forces, double* sums,
                    const int* image_atom) {
  nequip_md::CellArguments c{};
  c.atoms = *atoms;
  c.num_atoms = num_atoms;
  c.skin = skin;
  c.list_offset = list_offset;
  std::vector<Int64> cell(num_atoms), order(num_atoms), first(cells * cells * cells + 1);
  if (cells) {
    for (int axis = 0; axis < 3; ++axis) c.width[axis] = extent / cells, c.cells[axis] = cells;
    c.cell = cell.data();
    RUN(find_cell, c, (num_atoms + nequip_md::LANES - 1) / nequip_md::LANES);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](Int64 a, Int64 b) { return cell[a] < cell[b]; });
    for (size_t k = 0; k < first.size(); ++k)
      first[k] = std::count_if(cell.begin(), cell.end(), [&](Int64 number) { return number < static_cast<Int64>(k); });
    c.atom_of_rank = order.data();
    c.first_of_cell = first.data();
  }
  list_offset[0] = 0;
  RUN(count_candidates, c, num_centres);
  std::partial_sum(list_offset, list_offset + num_centres + 1, list_offset);
  c.list = list;
  RUN(write_candidates, c, num_centres);

  std::vector<Int64> offset(num_nodes + 1, -1);
  nequip_md::EdgeArguments e{};
  e.atoms = *atoms;
  e.list_offset = list_offset;
  e.list = list;
  e.atom = image_atom;
  e.edge_offset = offset.data();
  RUN(count_edges, e, num_nodes);
  std::partial_sum(offset.begin(), offset.end(), offset.begin());
  e.count = e.num_nodes = num_nodes;
  e.num_edges = num_edges;
  e.padding = padding;
  e.vectors = vectors;
  e.centre_node = nodes;
  e.neighbour_node = nodes + num_edges;
  e.neighbour_atom = neighbour_atom;
  e.row_ptr = row_ptr;
  RUN(write_edges, e, num_nodes);

  std::vector<double> gradient(3 * num_edges), energy(num_nodes);
  for (Int64 k = 0; k < 3 * num_edges; ++k) gradient[k] = 0.1 * vectors[k];
  for (Int64 k = 0; k < num_nodes; ++k) energy[k] = k;
  nequip_md::TallyArguments t{};
  t.row_ptr = row_ptr;
  t.edge_offset = offset.data();
  t.vectors = vectors;
  t.gradient = gradient.data();
  t.node_energy = energy.data();
  t.neighbour_atom = neighbour_atom;
  t.atoms = *atoms;
  t.forces = forces;
  t.sums = sums;
  RUN(tally_fixed, t, num_nodes);
  return true;
}

// Computes positions of atoms and images; arrays are as in kernels.h.
extern "C" bool place(const double* given, const int* atom, const int* shift, const double* lattice,
                      Int64 num_positions, double* positions) {
  nequip_md::ImageArguments i{};
  i.given = given;
  i.atom = atom;
  i.shift = shift;
  std::copy_n(lattice, 9, i.lattice);
  i.num_positions = num_positions;
  i.positions = positions;
  RUN(place_images, i, (num_positions + nequip_md::LANES - 1) / nequip_md::LANES);
  return true;
}

// Reads rows to `values`, adds 1 to these, writes them to rows and copies rows to others, and adds up terms, all as in
// RowArguments; numbers have bytes_each bytes.
extern "C" bool travel(const Int64* read, Int64 num_values, const Int64* write, const Int64* source, Int64 num_images,
                       const Int64* sums, const Int64* start, const Int64* term, Int64 num_sums, Int64 width,
                       int bytes_each, void* features, void* values) {
  nequip_md::RowArguments a{};
  a.num_values = num_values;
  a.width = width;
  a.words = width * bytes_each / 4;
  a.features = features;
  a.values = values;
  a.row = read;
  RUN(read_rows, a, num_values);
  for (Int64 k = 0; k < num_values * width; ++k)
    if (bytes_each == 8)
      static_cast<double*>(values)[k] += 1;
    else
      static_cast<float*>(values)[k] += 1;
  a.row = write;
  a.source = source;
  RUN(write_rows, a, num_values + num_images);
  a.row = sums;
  a.start = start;
  a.term = term;
  if (bytes_each == 8) {
    RUN(add_rows_double, a, num_sums);
  } else {
    RUN(add_rows_float, a, num_sums);
  }
  return true;
}
