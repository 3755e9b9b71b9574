/* ----------------------------------------------------------------------
   Pair style nequip for LAMMPS, https://www.lammps.org

   Copyright (C) 2026 the nequip-md authors
   This software is distributed under the GNU General Public License, version 2.
------------------------------------------------------------------------- */

// Commands pair_style and pair_coeff of pair style nequip, and loading of the model.

#include "pair_nequip.h"

#include "atom.h"
#include "citeme.h"
#include "comm.h"
#include "element_masses.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "update.h"
#include "utils.h"

#include "nequip_md_engine.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include <sys/stat.h>

using namespace LAMMPS_NS;

static constexpr double EV_IN_KCAL_PER_MOL =
    23.060549;    // LAMMPS' factor between units metal and real
static constexpr int MESSAGE_SIZE = 1024;

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
  // the keywords may select another device, so pair_coeff must load the model again

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
   1 eV in LAMMPS' unit of energy; 0 for units that are not supported
------------------------------------------------------------------------- */

double PairNequIP::energy_factor() const
{
  if (strcmp(update->unit_style, "metal") == 0) return 1.0;
  if (strcmp(update->unit_style, "real") == 0) return EV_IN_KCAL_PER_MOL;
  return 0.0;
}

/* ----------------------------------------------------------------------
   detect names in the wrong order: a mass that equals that of another element, or is far from that
   of its own; isotopes and repartitioned masses of hydrogen pass
------------------------------------------------------------------------- */

void PairNequIP::check_masses()
{
  constexpr double SAME = 0.02, FAR = 5.0;
  if (masses_checked) return;
  masses_checked = true;
  const int ntypes = atom->ntypes;
  std::vector<double> mass(ntypes + 1, 0.0);
  if (atom->rmass) {    // mean mass of each type
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
  training_force = guard && !largest.empty() ? options.energy_factor * std::stod(largest) : 0.0;

  if (comm->me == 0)
    utils::logmesg(lmp, "Pair style nequip: " + text("kind") + " model " + path + " for " +
                            text("type_names") + ", cutoff " + text("cutoff") + ", precision " +
                            text("precision") + ", device " + text("device") + ", threads " +
                            std::to_string(options.num_threads) +
                            (isolated ? "\n" : ", energies of isolated atoms left out\n"));
  // a model on a GPU does not use OpenMP threads, but LAMMPS wakes all of them when it wraps atoms
  // into the box (DomainOMP::pbc), which may take longer than a step of a small system
  if (comm->me == 0 && text("device") != "cpu" && comm->nthreads > 1)
    error->warning(
        FLERR, "Pair style nequip runs on a GPU and LAMMPS with " + std::to_string(comm->nthreads) +
                   " OpenMP threads, which slow it down; set OMP_NUM_THREADS=1 unless other "
                   "styles need them");
  return "";
}

/* ----------------------------------------------------------------------
   hash of all bytes of a file; 0 if it cannot be read, which is reported when it is loaded
------------------------------------------------------------------------- */

uint64_t PairNequIP::digest(const char *file)
{
  constexpr uint64_t FACTOR = 0x9E3779B97F4A7C15u;
  struct stat state;
  if (stat(file, &state) != 0 || !S_ISREG(state.st_mode)) return 0;
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
   error message if ranks have loaded different files; otherwise empty
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

/* ----------------------------------------------------------------------
   name of an atom type in pair_coeff
------------------------------------------------------------------------- */

std::string PairNequIP::name_of(int type) const
{
  return map[type] < 0 ? "NULL" : elements[map[type]];
}

/* ----------------------------------------------------------------------
   value of a key of the model's metadata; empty if it has no such key
------------------------------------------------------------------------- */

std::string PairNequIP::text(const char *key) const
{
  const char *value = nequip_md_metadata(model, key);
  return value ? value : "";
}

/* ----------------------------------------------------------------------
   index of the GPU of this rank, by its rank among those on the same host
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
   map atom types to model types; NULL excludes a type from the model
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
