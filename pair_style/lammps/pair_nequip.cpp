/* ----------------------------------------------------------------------
   Pair style nequip for LAMMPS, https://www.lammps.org

   Copyright (C) 2026 the nequip-md authors
   This software is distributed under the GNU General Public License, version 2.
------------------------------------------------------------------------- */

#include "pair_nequip.h"

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "update.h"
#include "utils.h"

#include "nequip_md_engine.h"

#include <algorithm>
#include <cstring>

using namespace LAMMPS_NS;

// Error gets complete strings, since its formatting templates use symbols that change between releases of LAMMPS.

static constexpr int VIRIAL_COMPONENTS = 6;

// ----------------------------------------------------------------------

PairNequIP::PairNequIP(LAMMPS *lmp) :
    Pair(lmp), model(nullptr), cutoff(0.0), num_threads(0), max_edges(0), isolated(true),
    replay(true), verbose(false), guard(true), own_search(false), masses_checked(false),
    exclusion_warned(false), last_build(-1), communicated(nullptr), force_warned(false),
    training_force(0.0), energy_flag(0)
{
  single_enable = 0;
  one_coeff = 1;
  manybody_flag = 1;
  no_virial_fdotr_compute = 1;
  centroidstressflag = CENTROID_AVAIL;
  unit_convert_flag = utils::NOCONVERT;

  // pair style hybrid copies these settings before a model is loaded

  nextra = 5;
  pvector = new double[nextra]();
  comm_forward = OWNER_COMPONENTS;
  comm_reverse = 3;
  comm_reverse_off = CENTROID_COMPONENTS;
}

/* ----------------------------------------------------------------------
   check if allocated, since class can be destructed when incomplete
------------------------------------------------------------------------- */

PairNequIP::~PairNequIP()
{
  unload();
  delete[] pvector;
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
}

// ----------------------------------------------------------------------

void PairNequIP::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);

  // ranks without atoms do not return early, as the communication below is collective

  const int nall = atom->nlocal + atom->nghost;
  const bool build = (neighbor->ago == 0) || (neighbor->ncalls != last_build);
  last_build = neighbor->ncalls;
  if (build) check_lists();

  nequip_md_system system = {};
  system.struct_size = sizeof(system);
  system.num_all = nall;
  system.positions = nall ? atom->x[0] : nullptr;
  system.types = atom->type;
  system.num_caller_types = atom->ntypes + 1;
  system.type_map = type_to_model.data();
  if (own_search) {
    system.num_centres = atom->nlocal;    // the first ones
    system.skin = neighbor->skin;
  } else {
    system.num_centres = list->inum;
    system.centres = list->ilist;
    system.num_neighbours = list->numneigh;
    system.neighbours = list->firstneigh;
    system.neighbour_mask = NEIGHMASK;
  }
  system.lists_changed = build;
  nequip_md_exchange exchange;
  if (nequip_md_message_passing_layers(model)) {
    if (build) find_owners();
    if (comm->nprocs == 1) {
      system.owner = owner_index.data();
    } else {
      if (build) connect_ghosts();
      exchange = ghost_exchange.begin();
      system.exchange = &exchange;
    }
  }

  nequip_md_results results = {};
  results.struct_size = sizeof(results);
  const bool newton = force->newton_pair;

  // check_forces() needs the total force on an atom, which LAMMPS would sum up later; checking when
  // lists are rebuilt suffices, as that happens every few steps if forces are huge

  const bool watch = build && training_force > 0.0;
  const bool sum_here = !newton || watch;
  results.forces = sum_here ? forces.start(nall, 3) : nall ? atom->f[0] : nullptr;
  if (newton) {
    if (vflag_atom) results.atom_virials = nall ? vatom[0] : nullptr;
    if (cvflag_atom) results.centroid_virials = nall ? cvatom[0] : nullptr;
  } else {
    if (vflag_atom) results.atom_virials = virials.start(nall, VIRIAL_COMPONENTS);
    if (cvflag_atom) results.centroid_virials = centroids.start(nall, CENTROID_COMPONENTS);
  }
  if (energy_flag) energies.assign(nall, 0.0);
  if (energy_flag)
    results.atom_energies = energies.data();
  else if (eflag_atom)
    results.atom_energies = nall ? eatom : nullptr;

  if (nequip_md_evaluate(model, &system, &results) != NEQUIP_MD_OK) {
    std::string message = std::string("Pair style nequip: ") + nequip_md_last_error(model);
    if (results.failed_atom >= 0)
      message += " (atom ID " + std::to_string(atom->tag[results.failed_atom]) + ")";
    error->one(FLERR, message);
  }
  if (!isolated) subtract_isolated(system.num_centres, system.centres, results);

  if (results.warned_atom >= 0) {
    std::string atoms = std::to_string(atom->tag[results.warned_atom]);
    if (results.warned_neighbour >= 0)
      atoms += " and " + std::to_string(atom->tag[results.warned_neighbour]);
    error->warning(FLERR, std::string("Pair style nequip: ") + nequip_md_last_warning(model) +
                              " (atom ID " + atoms + remark());
  }

  statistics.steps += 1;
  statistics.replayed += results.replayed;
  statistics.pieces += results.num_pieces;
  statistics.edges += results.num_edges;
  statistics.lists += results.seconds_lists;
  statistics.model += results.seconds_model;
  statistics.results += results.seconds_results;

  // values for compute pair, which sums them over ranks

  pvector[0] = static_cast<double>(results.num_edges);
  pvector[1] = static_cast<double>(results.num_candidates);
  pvector[2] = static_cast<double>(results.num_pieces);
  pvector[3] = static_cast<double>(results.num_evaluated);
  pvector[4] = atom->nghost;

  if (energy_flag && eflag_atom)
    for (int i = 0; i < nall; i++)
      eatom[i] += energies[i];

  if (eflag_global) eng_vdwl += results.energy;
  if (vflag_global)
    for (int k = 0; k < VIRIAL_COMPONENTS; k++)
      virial[k] += results.virial[k];

  if (sum_here) {
    add_ghost_sums(forces, atom->f);
    if (watch) check_forces();
  }
  if (!newton) {
    if (vflag_atom) add_ghost_sums(virials, vatom);
    if (cvflag_atom) add_ghost_sums(centroids, cvatom);
  }
}

/* ----------------------------------------------------------------------
   init specific to this pair style
------------------------------------------------------------------------- */

void PairNequIP::init_style()
{
  if (!model) error->all(FLERR, "Pair style nequip has no model; give one with pair_coeff");
  if (atom->tag_enable == 0)
    error->all(FLERR, "Pair style nequip requires atom IDs; use atom_modify id yes");
  if (comm->nprocs > 1 && nequip_md_message_passing_layers(model) && text("device") != "cpu")
    error->all(FLERR, "Pair style nequip runs models with message passing (NequIP) on a GPU with "
                      "one MPI process only, this run has " +
                          std::to_string(comm->nprocs) +
                          "; use one, device cpu with an artifact for CPUs, or an Allegro model");
  check_masses();
  if (isolated)
    check_trial_deletions();
  else
    find_isolated_energies();
  exclusion_warned = false;

  const std::string reason = needs_lists();
  if (neighbors == "engine" && !reason.empty())
    error->all(FLERR, "Pair_style nequip neighbors engine cannot be used with " + reason +
                          "; use neighbors lammps");
  own_search =
      reason.empty() && (neighbors == "engine" || (neighbors.empty() && text("device") == "cuda"));
  if (!own_search) neighbor->add_request(this, NeighConst::REQ_FULL);
  last_build = -1;
  statistics = Statistics();
  ghost_exchange.reset_traffic();
}

/* ----------------------------------------------------------------------
   init for one type pair i,j and corresponding j,i
------------------------------------------------------------------------- */

double PairNequIP::init_one(int i, int j)
{
  if (setflag[i][j] == 0) error->all(FLERR, "All pair coeffs are not set");
  const int mi = type_to_model[i], mj = type_to_model[j];
  return std::max(nequip_md_pair_cutoff(model, mi, mj), nequip_md_pair_cutoff(model, mj, mi));
}

// ----------------------------------------------------------------------

void *PairNequIP::extract(const char *str, int &dim)
{
  dim = 0;
  if (strcmp(str, "cutoff") == 0) return &cutoff;
  if (strcmp(str, "energy_flag") == 0) return &energy_flag;
  return nullptr;
}

/* ----------------------------------------------------------------------
   per-atom energies for fix pair, computed in its steps without a compute
------------------------------------------------------------------------- */

void *PairNequIP::extract_peratom(const char *str, int &ncol)
{
  if (strcmp(str, "energy") != 0) return nullptr;
  ncol = 0;
  return energies.data();
}

// ----------------------------------------------------------------------

double PairNequIP::memory_usage()
{
  double bytes = Pair::memory_usage();
  for (const AtomSums *sums : {&forces, &virials, &centroids})
    bytes += sums->values.capacity() * sizeof(double);
  bytes += energies.capacity() * sizeof(double);
  bytes += owners.capacity() * sizeof(GhostExchange::Owner) + owner_index.capacity() * sizeof(int);
  return bytes + ghost_exchange.memory_usage();
}

/* ----------------------------------------------------------------------
   with keyword verbose: print sizes and times of the evaluations of a run
------------------------------------------------------------------------- */

void PairNequIP::finish()
{
  if (!verbose) return;
  constexpr int COUNT = sizeof(Statistics) / sizeof(double);
  Statistics sum, most;
  MPI_Reduce(&statistics, &sum, COUNT, MPI_DOUBLE, MPI_SUM, 0, world);
  MPI_Reduce(&statistics, &most, COUNT, MPI_DOUBLE, MPI_MAX, 0, world);

  // all processes have made the same calls

  const auto &traffic = ghost_exchange.traffic();
  const int count = 2 * static_cast<int>(traffic.size());
  std::vector<double> here, total(count), largest(count);
  for (const GhostExchange::Traffic &call : traffic) {
    here.push_back(call.bytes);
    here.push_back(call.seconds);
  }
  MPI_Reduce(here.data(), total.data(), count, MPI_DOUBLE, MPI_SUM, 0, world);
  MPI_Reduce(here.data(), largest.data(), count, MPI_DOUBLE, MPI_MAX, 0, world);
  if (comm->me != 0 || most.steps == 0) return;
  const double ranks = comm->nprocs, steps = most.steps;
  const auto line = [&](const char *what, double total, double largest, double unit,
                        const char *name) {
    char text[160];
    snprintf(text, sizeof(text), "  %-34s %14.6g %14.6g  %s\n", what, unit * total / ranks / steps,
             unit * largest / steps, name);
    return std::string(text);
  };
  std::string text = "Pair style nequip, " + std::to_string(static_cast<bigint>(steps)) +
                     " evaluations: mean and maximum over MPI processes of\n";
  text += line("edges", sum.edges, most.edges, 1.0, "");
  text += line("evaluations of the model per step", sum.pieces, most.pieces, 1.0, "");
  text += line("of these replayed", sum.replayed, most.replayed, 1.0, "");
  text += line("positions and neighbors", sum.lists, most.lists, 1e3, "ms");
  text += line("edges, model and sums", sum.model, most.model, 1e3, "ms");
  text += line("adding forces", sum.results, most.results, 1e3, "ms");
  const int layers = count / 4;    // that read features of ghosts: all but the first
  for (int call = 0; call < 2 * layers; call++) {
    const bool forward = call < layers;
    const std::string what = (forward ? "features for layer " : "gradients for layer ") +
                             std::to_string(2 + (forward ? call : 2 * layers - 1 - call));
    text += line(what.c_str(), total[2 * call], largest[2 * call], 1e-6, "MB sent");
    text += line("", total[2 * call + 1], largest[2 * call + 1], 1e3, "ms");
  }
  utils::logmesg(lmp, text);
}
