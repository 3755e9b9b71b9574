/* ----------------------------------------------------------------------
   Pair style nequip for LAMMPS, https://www.lammps.org

   Copyright (C) 2026 the nequip-md authors
   This software is distributed under the GNU General Public License, version 2.
------------------------------------------------------------------------- */

#include "pair_nequip.h"

#include "atom.h"
#include "citeme.h"
#include "comm.h"
#include "element_masses.h"
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
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <numeric>

using namespace LAMMPS_NS;

// Messages are passed to Error as ready-made strings: its formatting templates use symbols that change with releases.

static constexpr double EV_IN_KCAL_PER_MOL =
    23.060549;    // LAMMPS' own factor between units metal and real
static constexpr int VIRIAL_COMPONENTS = 6;
static constexpr int CENTROID_COMPONENTS = 9;
static constexpr int MESSAGE_SIZE = 1024;
static constexpr int RESTART_TEXT_SIZE =
    1 << 16;    // a longer text of a restart file is a damaged one
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

static const char CITE_NEQUIP[] =
    "pair_style nequip with a NequIP model: doi:10.1038/s41467-022-29939-5\n\n"
    "@Article{Batzner2022,\n"
    " author = {Batzner, Simon and Musaelian, Albert and Sun, Lixin and Geiger, Mario and Mailoa, "
    "Jonathan P.\n"
    "   and Kornbluth, Mordechai and Molinari, Nicola and Smidt, Tess E. and Kozinsky, Boris},\n"
    " title = {{E(3)}-Equivariant Graph Neural Networks for Data-Efficient and Accurate "
    "Interatomic Potentials},\n"
    " journal = {Nature Communications},\n"
    " year = 2022,\n"
    " volume = 13,\n"
    " pages = 2453\n"
    "}\n\n";

static const char CITE_ALLEGRO[] =
    "pair_style nequip with an Allegro model: doi:10.1038/s41467-023-36329-y\n\n"
    "@Article{Musaelian2023,\n"
    " author = {Musaelian, Albert and Batzner, Simon and Johansson, Anders and Sun, Lixin and "
    "Owen, Cameron J.\n"
    "   and Kornbluth, Mordechai and Kozinsky, Boris},\n"
    " title = {Learning Local Equivariant Representations for Large-Scale Atomistic Dynamics},\n"
    " journal = {Nature Communications},\n"
    " year = 2023,\n"
    " volume = 14,\n"
    " pages = 579\n"
    "}\n\n";

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
    centres.resize(atom->nlocal);
    std::iota(centres.begin(), centres.end(), 0);
    system.num_centres = atom->nlocal;
    system.centres = centres.data();
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

// ----------------------------------------------------------------------

void PairNequIP::allocate()
{
  allocated = 1;
  const int n = atom->ntypes + 1;
  memory->create(setflag, n, n, "pair:setflag");
  memory->create(cutsq, n, n, "pair:cutsq");
  for (int i = 0; i < n; i++)
    std::fill(setflag[i], setflag[i] + n, 0);
  map = new int[n];
}

/* ----------------------------------------------------------------------
   global settings: pair_style nequip keyword value ...
------------------------------------------------------------------------- */

void PairNequIP::settings(int narg, char **arg)
{
  // a second pair_style nequip may ask for another device: the model must be given again

  unload();
  device.clear();
  num_threads = 0;
  max_edges = 0;
  isolated = true;
  neighbors.clear();
  replay = true;
  verbose = false;
  guard = true;

  const auto one_of = [this](const std::string &keyword, const std::string &value,
                             const std::string &first, const std::string &second) {
    if (value != first && value != second)
      error->all(FLERR, "Pair_style nequip " + keyword + " is '" + value + "'; it must be " +
                            first + " or " + second);
    return value;
  };
  for (int iarg = 0; iarg < narg; iarg += 2) {
    const std::string keyword = arg[iarg];
    const bool known = keyword == "device" || keyword == "guard" || keyword == "isolated" ||
                       keyword == "max_edges" || keyword == "neighbors" || keyword == "replay" ||
                       keyword == "threads" || keyword == "verbose";
    if (!known)
      error->all(FLERR,
                 "Unknown pair_style nequip keyword '" + keyword +
                     "'; known are: device cpu|cuda, guard yes|no, isolated yes|no, max_edges N, "
                     "neighbors engine|lammps, "
                     "replay yes|no, threads N, verbose yes|no");
    if (iarg + 1 == narg)
      error->all(FLERR, "Pair_style nequip keyword '" + keyword + "' has no value");
    const std::string value = arg[iarg + 1];
    if (keyword == "device") {
      device = one_of(keyword, value, "cpu", "cuda");
    } else if (keyword == "guard") {
      guard = one_of(keyword, value, "yes", "no") == "yes";
    } else if (keyword == "isolated") {
      isolated = one_of(keyword, value, "yes", "no") == "yes";
    } else if (keyword == "neighbors") {
      neighbors = one_of(keyword, value, "engine", "lammps");
    } else if (keyword == "replay") {
      replay = one_of(keyword, value, "yes", "no") == "yes";
    } else if (keyword == "verbose") {
      verbose = one_of(keyword, value, "yes", "no") == "yes";
    } else if (keyword == "max_edges") {
      max_edges = utils::bnumeric(FLERR, value, false, lmp);
      if (max_edges < 1)
        error->all(FLERR, "Pair_style nequip max_edges is " + value + "; it must be 1 or more");
    } else {
      num_threads = utils::inumeric(FLERR, value, false, lmp);
      if (num_threads < 1 || num_threads > NEQUIP_MD_MAX_THREADS)
        error->all(FLERR, "Pair_style nequip threads is " + value + "; it must be from 1 to " +
                              std::to_string(NEQUIP_MD_MAX_THREADS));
    }
  }
}

/* ----------------------------------------------------------------------
   set coeffs for all types: pair_coeff * * model.pt2 name1 name2 ...
------------------------------------------------------------------------- */

void PairNequIP::coeff(int narg, char **arg)
{
  if (narg < 3)
    error->all(FLERR,
               "Pair_coeff for pair style nequip is: pair_coeff * * model.pt2 name1 name2 ...");
  if (strcmp(arg[0], "*") != 0 || strcmp(arg[1], "*") != 0)
    error->all(FLERR,
               std::string("Pair_coeff for pair style nequip must start with '* *', not '") +
                   arg[0] + " " + arg[1] +
                   "'; one model covers all pairs of types, use NULL for types that it leaves out");
  if (narg - 3 != atom->ntypes)
    error->all(FLERR, "Pair_coeff for pair style nequip names " + std::to_string(narg - 3) +
                          " model types; it must name one (or NULL) for each of the " +
                          std::to_string(atom->ntypes) + " atom types");

  if (energy_factor() == 0.0)
    error->all(FLERR, std::string("Pair style nequip cannot use units ") + update->unit_style +
                          "; use units metal or real");

  if (!allocated) allocate();
  unload();
  const std::string problem = load(arg[2]);
  if (!problem.empty()) error->all(FLERR, "Pair style nequip: " + problem);
  map_types(narg - 3, arg + 3);
  compare_with_restart();
}

/* ----------------------------------------------------------------------
   LAMMPS' unit of energy in eV, inverted; 0 for units that are not supported
------------------------------------------------------------------------- */

double PairNequIP::energy_factor() const
{
  if (strcmp(update->unit_style, "metal") == 0) return 1.0;
  if (strcmp(update->unit_style, "real") == 0) return EV_IN_KCAL_PER_MOL;
  return 0.0;
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
    const int i = atoms[k];
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
   names in the wrong order: a mass that is another element's, or far from that of its own;
   isotopes and repartitioned masses of hydrogen are neither
------------------------------------------------------------------------- */

void PairNequIP::check_masses()
{
  constexpr double SAME = 0.02, FAR = 5.0;
  if (masses_checked) return;
  masses_checked = true;
  const int ntypes = atom->ntypes;
  std::vector<double> mass(ntypes + 1, 0.0);
  if (atom->rmass) {    // mean of each type
    std::vector<double> here(2 * (ntypes + 1), 0.0), sum(2 * (ntypes + 1));
    for (int i = 0; i < atom->nlocal; i++) {
      here[2 * atom->type[i]] += atom->rmass[i];
      here[2 * atom->type[i] + 1] += 1.0;
    }
    MPI_Allreduce(here.data(), sum.data(), 2 * (ntypes + 1), MPI_DOUBLE, MPI_SUM, world);
    for (int i = 1; i <= ntypes; i++)
      if (sum[2 * i + 1] > 0.0) mass[i] = sum[2 * i] / sum[2 * i + 1];
  } else if (atom->mass) {
    for (int i = 1; i <= ntypes; i++)
      if (atom->mass_setflag[i]) mass[i] = atom->mass[i];
  }
  if (comm->me != 0) return;

  const auto same = [](double a, double b) {
    return std::fabs(a - b) < SAME * b;
  };
  for (int i = 1; i <= ntypes; i++) {
    if (type_to_model[i] < 0 || mass[i] <= 0.0) continue;
    const double own = element_mass(nequip_md_type_name(model, type_to_model[i]));
    if (own == 0.0 || same(mass[i], own)) continue;
    std::string other;
    for (int t = 0; t < nequip_md_num_types(model); t++) {
      const double of_other = element_mass(nequip_md_type_name(model, t));
      if (of_other > 0.0 && same(mass[i], of_other)) other = nequip_md_type_name(model, t);
    }
    if (other.empty() && mass[i] < FAR * own && mass[i] > own / FAR) continue;
    char numbers[100];
    snprintf(numbers, sizeof(numbers), "%.6g where that of the element is %.6g", mass[i], own);
    error->warning(FLERR, "Pair_coeff calls atom type " + std::to_string(i) + " " + name_of(i) +
                              ", but its mass is " + numbers +
                              (other.empty() ? "" : "; it is that of " + other) +
                              "; check the order of the names");
  }
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
  return bytes + (owner.capacity() + centres.capacity()) * sizeof(int);
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

// ----------------------------------------------------------------------

void PairNequIP::unload()
{
  nequip_md_free(model);
  model = nullptr;
  if (!allocated) return;
  for (int i = 0; i <= atom->ntypes; i++)
    std::fill(setflag[i], setflag[i] + atom->ntypes + 1, 0);
}

/* ----------------------------------------------------------------------
   restart: keywords, the model's path and identity, and the names of the types
------------------------------------------------------------------------- */

static void write_text(FILE *fp, const std::string &text)
{
  const int size = static_cast<int>(text.size());
  fwrite(&size, sizeof(int), 1, fp);
  fwrite(text.data(), 1, size, fp);
}

static void damaged(LAMMPS *lmp)
{
  lmp->error->all(
      FLERR,
      "The settings of pair style nequip in the restart file are damaged, or of another version of "
      "nequip-md; use another restart file, or a data file");
}

static std::string read_text(FILE *fp, LAMMPS *lmp, MPI_Comm world)
{
  int me, size = 0;
  MPI_Comm_rank(world, &me);
  if (me == 0) utils::sfread(FLERR, &size, sizeof(int), 1, fp, nullptr, lmp->error);
  MPI_Bcast(&size, 1, MPI_INT, 0, world);
  if (size < 0 || size > RESTART_TEXT_SIZE) damaged(lmp);
  std::string text(size, ' ');
  if (size == 0) return text;
  if (me == 0) utils::sfread(FLERR, &text[0], 1, size, fp, nullptr, lmp->error);
  MPI_Bcast(&text[0], size, MPI_CHAR, 0, world);
  return text;
}

static std::string read_one_of(FILE *fp, LAMMPS *lmp, MPI_Comm world,
                               const std::vector<std::string> &known)
{
  const std::string text = read_text(fp, lmp, world);
  if (std::find(known.begin(), known.end(), text) == known.end()) damaged(lmp);
  return text;
}

static bigint read_count(FILE *fp, LAMMPS *lmp, MPI_Comm world, bigint largest)
{
  const std::string text = read_text(fp, lmp, world);
  char *end = nullptr;
  errno = 0;
  const bigint count = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || end != text.c_str() + text.size() || errno != 0 || count < 0 ||
      count > largest)
    damaged(lmp);
  return count;
}

// called on rank 0 alone

void PairNequIP::write_restart(FILE *fp)
{
  write_restart_settings(fp);
  write_text(fp, path);
  write_text(fp, text("checkpoint_sha256"));
  write_text(fp, text("precision"));
  for (int i = 1; i <= atom->ntypes; i++)
    write_text(fp, name_of(i));
}

void PairNequIP::write_restart_settings(FILE *fp)
{
  write_text(fp, device);
  write_text(fp, isolated ? "yes" : "no");
  write_text(fp, std::to_string(num_threads));
  write_text(fp, std::to_string(max_edges));
  write_text(fp, neighbors);
  write_text(fp, replay ? "yes" : "no");
  write_text(fp, verbose ? "yes" : "no");
  write_text(fp, guard ? "yes" : "no");
}

void PairNequIP::read_restart_settings(FILE *fp)
{
  const std::vector<std::string> answers = {"yes", "no"};
  device = read_one_of(fp, lmp, world, {"", "cpu", "cuda"});
  isolated = read_one_of(fp, lmp, world, answers) == "yes";
  num_threads = static_cast<int>(read_count(fp, lmp, world, NEQUIP_MD_MAX_THREADS));
  max_edges = read_count(fp, lmp, world, MAXBIGINT);
  neighbors = read_one_of(fp, lmp, world, {"", "engine", "lammps"});
  replay = read_one_of(fp, lmp, world, answers) == "yes";
  verbose = read_one_of(fp, lmp, world, answers) == "yes";
  guard = read_one_of(fp, lmp, world, answers) == "yes";
}

/* ----------------------------------------------------------------------
   take up the model where the restart file says it is; if it cannot be loaded from there,
   pair_coeff gives it
------------------------------------------------------------------------- */

void PairNequIP::read_restart(FILE *fp)
{
  read_restart_settings(fp);
  const std::string file = read_text(fp, lmp, world);
  remembered.checkpoint = read_text(fp, lmp, world);
  remembered.precision = read_text(fp, lmp, world);
  remembered.names.assign(atom->ntypes + 1, "");
  std::string list;
  for (int i = 1; i <= atom->ntypes; i++) {
    remembered.names[i] = read_text(fp, lmp, world);
    list += " " + remembered.names[i];
  }

  allocate();
  const std::string problem = load(file.c_str());
  if (!problem.empty()) {
    if (comm->me == 0)
      error->warning(FLERR, "The restart file's model cannot be taken up: " + problem +
                                "; after read_restart, give: pair_coeff * * MODEL.pt2" + list);
    return;
  }
  std::vector<char *> arguments;
  for (int i = 1; i <= atom->ntypes; i++)
    arguments.push_back(&remembered.names[i][0]);
  map_types(atom->ntypes, arguments.data());
  compare_with_restart();
}

/* ----------------------------------------------------------------------
   another potential than before is allowed, but not silently
------------------------------------------------------------------------- */

void PairNequIP::compare_with_restart()
{
  if (remembered.names.empty()) return;
  std::string differences;
  const auto compare = [&](const std::string &what, const std::string &before,
                           const std::string &now) {
    if (before != now)
      differences +=
          (differences.empty() ? "" : "; ") + what + " was '" + before + "' and is '" + now + "'";
  };
  compare("the checkpoint's SHA-256", remembered.checkpoint, text("checkpoint_sha256"));
  compare("the precision", remembered.precision, text("precision"));
  for (int i = 1; i <= atom->ntypes; i++)
    compare("the name of atom type " + std::to_string(i), remembered.names[i], name_of(i));
  if (!differences.empty() && comm->me == 0)
    error->warning(FLERR, "Pair style nequip continues a restart file with another potential: " +
                              differences);
}

/* ----------------------------------------------------------------------
   load the model on all ranks; if one fails, all return its message
------------------------------------------------------------------------- */

std::string PairNequIP::load(const char *file)
{
  if (nequip_md_abi_version() != NEQUIP_MD_ABI_VERSION)
    error->all(FLERR, "Pair style nequip and libnequip_md_engine are of different versions; run "
                      "nequip-md-lammps build");

  nequip_md_options options = {};
  options.struct_size = sizeof(options);
  options.device = device.empty() ? nullptr : device.c_str();
  options.device_index = device_index();
  options.num_threads = num_threads ? num_threads : comm->nthreads;
  options.energy_factor = energy_factor();
  options.max_edges = max_edges;
  options.no_replay = !replay;
  options.no_guard = !guard;

  Digests digests;
  digests.before = digest(file);
  char message[MESSAGE_SIZE] = "";
  const int failed = nequip_md_load(file, &options, &model, message, MESSAGE_SIZE) != NEQUIP_MD_OK;
  int culprit, candidate = failed ? comm->me : comm->nprocs;
  MPI_Allreduce(&candidate, &culprit, 1, MPI_INT, MPI_MIN, world);
  if (culprit < comm->nprocs) {
    MPI_Bcast(message, MESSAGE_SIZE, MPI_CHAR, culprit, world);
    unload();
    return message;
  }
  digests.after = digest(file);
  const std::string difference = compare(digests, file);
  if (!difference.empty()) {
    unload();
    return difference;
  }
  cutoff = nequip_md_cutoff(model);
  path = file;
  masses_checked = false;
  if (lmp->citeme && text("kind") == "nequip") lmp->citeme->add(CITE_NEQUIP);
  if (lmp->citeme && text("kind") == "allegro") lmp->citeme->add(CITE_ALLEGRO);
  const std::string largest = text("largest_force");
  force_warned = false;
  known_force = guard && !largest.empty() ? options.energy_factor * std::stod(largest) : 0.0;

  if (comm->me == 0)
    utils::logmesg(lmp, "Pair style nequip: " + text("kind") + " model " + path + " for " +
                            text("type_names") + ", cutoff " + text("cutoff") + ", precision " +
                            text("precision") + ", device " + text("device") + ", threads " +
                            std::to_string(options.num_threads) +
                            (isolated ? "\n" : ", energies of isolated atoms left out\n"));
  // OpenMP threads do nothing for a model on a GPU, but LAMMPS wakes all of them whenever it wraps
  // atoms into the box (DomainOMP::pbc), which may take longer than a step of a small system
  if (comm->me == 0 && text("device") != "cpu" && comm->nthreads > 1)
    error->warning(
        FLERR, "Pair style nequip runs on a GPU and LAMMPS with " + std::to_string(comm->nthreads) +
                   " OpenMP threads, which slow it down; set OMP_NUM_THREADS=1 unless other "
                   "styles need them");
  return "";
}

/* ----------------------------------------------------------------------
   a number that depends on all bytes of a file; 0 if it cannot be read, which loading it reports
------------------------------------------------------------------------- */

uint64_t PairNequIP::digest(const char *file)
{
  constexpr uint64_t FACTOR = 0x9E3779B97F4A7C15u;
  std::error_code none;
  if (!std::filesystem::is_regular_file(file, none)) return 0;
  FILE *fp = fopen(file, "rb");
  if (!fp) return 0;
  std::vector<uint64_t> words(1 << 17);
  char *const bytes = reinterpret_cast<char *>(words.data());
  uint64_t hash = FACTOR;
  while (const size_t size = fread(bytes, 1, words.size() * sizeof(uint64_t), fp)) {
    const size_t count = (size + sizeof(uint64_t) - 1) / sizeof(uint64_t);
    std::fill(bytes + size, bytes + count * sizeof(uint64_t), 0);
    for (size_t k = 0; k < count; k++) {
      hash = (hash ^ words[k]) * FACTOR;
      hash ^= hash >> 29;
    }
    hash += size;
  }
  fclose(fp);
  return hash;
}

/* ----------------------------------------------------------------------
   a sentence if not all ranks have loaded one and the same file
------------------------------------------------------------------------- */

std::string PairNequIP::compare(Digests digests, const char *file)
{
  std::vector<Digests> all(comm->nprocs);
  MPI_Allgather(&digests, sizeof(Digests), MPI_BYTE, all.data(), sizeof(Digests), MPI_BYTE, world);
  for (int rank = 0; rank < comm->nprocs; rank++) {
    if (all[rank].before != all[rank].after)
      return std::string("model file '") + file + "' changed while it was loaded; start again";
    if (all[rank].before == all[0].before) continue;
    const auto name_of_host = [this](int owner) {
      char name[MPI_MAX_PROCESSOR_NAME + 1] = "";
      int length;
      MPI_Get_processor_name(name, &length);
      MPI_Bcast(name, sizeof(name), MPI_CHAR, owner, world);
      return std::string(name);
    };
    const std::string first = name_of_host(0), other = name_of_host(rank);
    return std::string("model file '") + file +
           "' is not the same on all MPI processes: process 0 on " + first + " and process " +
           std::to_string(rank) + " on " + other +
           " found different ones; give all of them the same file";
  }
  return "";
}

// name of an atom type as pair_coeff gave it

std::string PairNequIP::name_of(int type) const
{
  return map[type] < 0 ? "NULL" : elements[map[type]];
}

// the model's metadata

std::string PairNequIP::text(const char *key) const
{
  const char *value = nequip_md_metadata(model, key);
  return value ? value : "";
}

/* ----------------------------------------------------------------------
   GPU of this rank: its place among the ranks of this world on this host
------------------------------------------------------------------------- */

int PairNequIP::device_index() const
{
  MPI_Comm host;
  MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
  int rank;
  MPI_Comm_rank(host, &rank);
  MPI_Comm_free(&host);
  const int count = nequip_md_device_count("cuda");
  return count ? rank % count : 0;
}

/* ----------------------------------------------------------------------
   map atom types to model types; NULL leaves a type out
------------------------------------------------------------------------- */

void PairNequIP::map_types(int narg, char **arg)
{
  map_element2type(narg, arg);
  type_to_model.assign(atom->ntypes + 1, -1);
  for (int i = 1; i <= atom->ntypes; i++) {
    if (map[i] < 0) continue;
    std::string known;
    for (int t = 0; t < nequip_md_num_types(model); t++) {
      const char *name = nequip_md_type_name(model, t);
      if (strcmp(name, elements[map[i]]) == 0) type_to_model[i] = t;
      known += std::string(" ") + name;
    }
    if (type_to_model[i] < 0) {
      const std::string wanted = elements[map[i]];
      unload();
      error->all(FLERR, "Pair_coeff names model type '" + wanted +
                            "', which the model does not have; it has:" + known);
    }
  }
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
