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
#include "modify.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "update.h"
#include "utils.h"

#include "nequip_md_engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>

using namespace LAMMPS_NS;

// Messages are passed to Error as ready-made strings: its formatting templates use symbols that change with releases.

static constexpr int VIRIAL_COMPONENTS = 6;
static constexpr int CENTROID_COMPONENTS = 9;
static constexpr int GROUP_ALL = 0;
static constexpr double SUSPICIOUS = 10.0;    // times the largest force of the training data

// Fixes that exclude a group of atoms from all neighbor lists, but only in their init(), after that of the pair style.
// Those that delete atoms on trial put them into this group, and take it that they have no energy then.

struct LAMMPS_NS::ExcludingFix {
  const char *style;
  bool deletes;
};

static constexpr ExcludingFix EXCLUDING_FIXES[] = {
    {"gcmc", true}, {"charge/regulation", true}, {"widom", false}};

// ----------------------------------------------------------------------

PairNequIP::PairNequIP(LAMMPS *lmp) :
    Pair(lmp), model(nullptr), cutoff(0.0), num_threads(0), max_edges(0), isolated(true),
    replay(true), verbose(false), guard(true), own_search(false), masses_checked(false),
    exclusion_warned(false), last_build(-1), in_transit(nullptr), force_warned(false),
    known_force(0.0), energy_flag(0)
{
  single_enable = 0;
  one_coeff = 1;
  manybody_flag = 1;
  no_virial_fdotr_compute = 1;
  centroidstressflag = CENTROID_AVAIL;
  unit_convert_flag = utils::NOCONVERT;

  // pair style hybrid copies these before the model is known

  nextra = 5;
  pvector = new double[nextra]();
  comm_forward = 1;
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

  // a rank without atoms goes through all of this, as communication below is collective

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
  if (nequip_md_message_passing_layers(model)) {
    find_owners();
    system.owner = owner.data();
  }

  nequip_md_results results = {};
  results.struct_size = sizeof(results);
  const bool newton = force->newton_pair;

  // the guard needs the whole force on an atom, which LAMMPS sums up later; it looks whenever lists are
  // new, which is every few steps where forces are huge

  const bool watch = build && known_force > 0.0;
  const bool collect = !newton || watch;
  results.forces = collect ? forces.start(nall, 3) : nall ? atom->f[0] : nullptr;
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
  if (!isolated) leave_out_isolated(system.num_centres, system.centres, results);

  if (results.warned_atom >= 0) {
    std::string atoms = std::to_string(atom->tag[results.warned_atom]);
    if (results.warned_neighbour >= 0)
      atoms += " and " + std::to_string(atom->tag[results.warned_neighbour]);
    error->warning(FLERR, std::string("Pair style nequip: ") + nequip_md_last_warning(model) +
                              " (atom ID " + atoms + remark());
  }

  work.steps += 1;
  work.replayed += results.replayed;
  work.pieces += results.num_pieces;
  work.edges += results.num_edges;
  work.lists += results.seconds_lists;
  work.model += results.seconds_model;
  work.results += results.seconds_results;

  // for compute pair, which sums over ranks

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

  if (collect) {
    bring_home(forces, atom->f);
    if (watch) check_forces();
  }
  if (!newton) {
    if (vflag_atom) bring_home(virials, vatom);
    if (cvflag_atom) bring_home(centroids, cvatom);
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
  if (comm->nprocs > 1 && nequip_md_message_passing_layers(model))
    error->all(FLERR, "Pair style nequip runs models with message passing (NequIP) on one MPI "
                      "process only, this run has " +
                          std::to_string(comm->nprocs) + "; use one, or an Allegro model");
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
  work = Work();
}

// whether a fix of this style, or of a variant of it, is defined

bool PairNequIP::is_there(const ExcludingFix &fix) const
{
  return !modify->get_fix_by_style(std::string("^") + fix.style).empty();
}

/* ----------------------------------------------------------------------
   what only LAMMPS' own neighbor lists know of; empty if all atoms around an atom are its neighbors
------------------------------------------------------------------------- */

std::string PairNequIP::needs_lists() const
{
  if (force->pair != this) return "pair style hybrid";
  for (const ExcludingFix &fix : EXCLUDING_FIXES)
    if (is_there(fix)) return std::string("fix ") + fix.style;
  return exclusions();
}

// what neigh_modify leaves out of the lists, empty if nothing

std::string PairNequIP::exclusions() const
{
  if (neighbor->nex_type || neighbor->nex_group || neighbor->nex_mol) return "neigh_modify exclude";
  if (neighbor->includegroup) return "neigh_modify include";
  return "";
}

/* ----------------------------------------------------------------------
   whenever lists are new: bonds and exclusions come and go during a run
------------------------------------------------------------------------- */

void PairNequIP::check_lists()
{
  check_special_bonds();
  if (own_search && !exclusions().empty())
    error->all(FLERR,
               "Pair style nequip finds neighbors itself, and " + exclusions() +
                   " came when the run was already set up; use pair_style nequip neighbors lammps");
  if (!isolated || exclusion_warned) return;
  for (int k = 0; k < neighbor->nex_group; k++)
    if (neighbor->ex1_group[k] == GROUP_ALL || neighbor->ex2_group[k] == GROUP_ALL)
      exclusion_warned = true;
  if (exclusion_warned && has_isolated_energies() && comm->me == 0)
    error->warning(
        FLERR,
        "Neigh_modify exclude takes atoms out of all neighbor lists, and pair style nequip gives "
        "them the energies of isolated atoms; to compare energies of different numbers of atoms, "
        "use pair_style nequip isolated no");
}

/* ----------------------------------------------------------------------
   energies of atoms without neighbors, by atom type; 0 for types that are not the model's
------------------------------------------------------------------------- */

void PairNequIP::find_isolated_energies()
{
  isolated_energies.assign(atom->ntypes + 1, 0.0);
  for (int i = 1; i <= atom->ntypes; i++)
    if (type_to_model[i] >= 0 &&
        nequip_md_isolated_energy(model, type_to_model[i], &isolated_energies[i]) != NEQUIP_MD_OK)
      error->one(FLERR, std::string("Pair style nequip: ") + nequip_md_last_error(model));
}

bool PairNequIP::has_isolated_energies()
{
  find_isolated_energies();
  return std::any_of(isolated_energies.begin(), isolated_energies.end(), [](double e) {
    return e != 0.0;
  });
}

void PairNequIP::leave_out_isolated(int num_centres, const int *atoms,
                                    nequip_md_results &results) const
{
  for (int k = 0; k < num_centres; k++) {
    const int i = atoms ? atoms[k] : k;
    const double energy = isolated_energies[atom->type[i]];
    results.energy -= energy;
    if (results.atom_energies) results.atom_energies[i] -= energy;
  }
}

/* ----------------------------------------------------------------------
   an atom deleted on trial would keep its isolated energy, while an inserted one brings it along,
   so that no chemical potential fits both
------------------------------------------------------------------------- */

void PairNequIP::check_trial_deletions()
{
  for (const ExcludingFix &fix : EXCLUDING_FIXES)
    if (fix.deletes && is_there(fix) && has_isolated_energies())
      error->all(
          FLERR,
          std::string("Pair style nequip counts the energies of isolated atoms, with which fix ") +
              fix.style + " gives wrong numbers of atoms; use pair_style nequip isolated no");
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
   for fix pair: energies of atoms at each of its steps, without a compute
------------------------------------------------------------------------- */

void *PairNequIP::extract_peratom(const char *str, int &ncol)
{
  if (strcmp(str, "energy") != 0) return nullptr;
  ncol = 0;
  return energies.data();
}

/* ----------------------------------------------------------------------
   forward communication: local index of the atom that a ghost copies
------------------------------------------------------------------------- */

int PairNequIP::pack_forward_comm(int n, int *sendlist, double *buf, int /*pbc_flag*/,
                                  int * /*pbc*/)
{
  for (int k = 0; k < n; k++)
    buf[k] = owner[sendlist[k]];
  return n;
}

void PairNequIP::unpack_forward_comm(int n, int first, double *buf)
{
  for (int k = 0; k < n; k++)
    owner[first + k] = static_cast<int>(buf[k]);
}

/* ----------------------------------------------------------------------
   reverse communication: what was collected on ghosts, with newton off
------------------------------------------------------------------------- */

int PairNequIP::pack_reverse_comm(int n, int first, double *buf)
{
  const int size = n * in_transit->width;
  std::copy_n(in_transit->values.data() + first * in_transit->width, size, buf);
  return size;
}

void PairNequIP::unpack_reverse_comm(int n, int *sendlist, double *buf)
{
  const int width = in_transit->width;
  for (int k = 0; k < n; k++)
    for (int c = 0; c < width; c++)
      in_transit->values[sendlist[k] * width + c] += *buf++;
}

// ----------------------------------------------------------------------

double PairNequIP::memory_usage()
{
  double bytes = Pair::memory_usage();
  for (const Collected *collected : {&forces, &virials, &centroids})
    bytes += collected->values.capacity() * sizeof(double);
  bytes += energies.capacity() * sizeof(double);
  return bytes + owner.capacity() * sizeof(int);
}

/* ----------------------------------------------------------------------
   at the end of a run: what its evaluations consisted of, and what they took
------------------------------------------------------------------------- */

void PairNequIP::finish()
{
  if (!verbose) return;
  constexpr int COUNT = sizeof(Work) / sizeof(double);
  Work sum, most;
  MPI_Reduce(&work, &sum, COUNT, MPI_DOUBLE, MPI_SUM, 0, world);
  MPI_Reduce(&work, &most, COUNT, MPI_DOUBLE, MPI_MAX, 0, world);
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
  utils::logmesg(lmp, text);
}

// ----------------------------------------------------------------------

double *PairNequIP::Collected::start(int natoms, int components)
{
  width = components;
  values.assign(static_cast<size_t>(natoms) * width, 0.0);
  return values.data();
}

/* ----------------------------------------------------------------------
   the model needs all neighbors, and has no weaker ones: harmless only where no atom of the model
   has such a partner; in a hybrid style the factors are this style's own during compute() only
------------------------------------------------------------------------- */

void PairNequIP::check_special_bonds()
{
  const double *const factor = force->special_lj;
  const bool whole = factor[1] == 1.0 && factor[2] == 1.0 && factor[3] == 1.0;
  if (atom->molecular == Atom::ATOMIC || whole) return;

  const auto has_partner = [&](int i) {
    // the template has the bonds
    if (atom->molecular == Atom::TEMPLATE) return atom->molindex[i] >= 0;
    for (int kind = 1, k = 0; kind <= 3; kind++)
      for (; k < atom->nspecial[i][kind - 1]; k++) {
        if (factor[kind] == 1.0) continue;
        const int partner = atom->map(atom->special[i][k]);
        if (partner >= 0 && type_to_model[atom->type[partner]] >= 0) return true;
      }
    return false;
  };
  tagint here = 0, anywhere;
  for (int i = 0; i < atom->nlocal && here == 0; i++)
    if (type_to_model[atom->type[i]] >= 0 && has_partner(i)) here = atom->tag[i];
  MPI_Allreduce(&here, &anywhere, 1, MPI_LMP_TAGINT, MPI_MAX, world);
  if (anywhere)
    error->all(FLERR, "Pair style nequip needs bonded atoms as full neighbors, but special_bonds "
                      "leaves out or scales "
                      "those of atom ID " +
                          std::to_string(anywhere) +
                          "; use special_bonds lj 1 1 1, or in a hybrid style pair_modify pair "
                          "nequip special lj 1 1 1");
}

// ----------------------------------------------------------------------

void PairNequIP::find_owners()
{
  owner.resize(atom->nlocal + atom->nghost);
  for (int i = 0; i < atom->nlocal; i++)
    owner[i] = i;
  comm->forward_comm(this);
}

/* ----------------------------------------------------------------------
   warn of forces far beyond those that the model was trained on
------------------------------------------------------------------------- */

void PairNequIP::check_forces()
{
  if (force_warned) return;
  int worst = -1;
  double largest = SUSPICIOUS * known_force;
  for (int i = 0; i < atom->nlocal; i++) {
    const double *const f = &forces.values[3 * static_cast<size_t>(i)];
    const double size = std::sqrt(f[0] * f[0] + f[1] * f[1] + f[2] * f[2]);
    if (size <= largest) continue;
    largest = size;
    worst = i;
  }
  if (worst < 0) return;
  force_warned = true;
  char sentence[256];
  snprintf(
      sentence, sizeof(sentence),
      "Pair style nequip: the force on an atom is %.3g, the largest one in the training data %.3g "
      "(force units); the run is probably leaving what the model knows (atom ID ",
      largest, known_force);
  error->warning(FLERR, sentence + std::to_string(atom->tag[worst]) + remark());
}

// where in the run a warning of the guard was given, and how to silence it

std::string PairNequIP::remark() const
{
  return ", step " + std::to_string(update->ntimestep) +
         "); this is said once, pair_style nequip guard no turns it off";
}

// ----------------------------------------------------------------------

void PairNequIP::bring_home(Collected &collected, double **array)
{
  in_transit = &collected;

  // releases before 2025 do not take the width as an argument; the larger of the two counts

  comm_reverse = comm_reverse_off = collected.width;
  comm->reverse_comm(this);
  comm_reverse_off = CENTROID_COMPONENTS;    // what room is made for at the next init
  const int nlocal = atom->nlocal;
  const double *value = collected.values.data();
  for (int i = 0; i < nlocal; i++)
    for (int c = 0; c < collected.width; c++)
      array[i][c] += *value++;
}
