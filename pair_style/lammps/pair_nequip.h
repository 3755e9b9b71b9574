/* -*- c++ -*- ----------------------------------------------------------
   Pair style nequip for LAMMPS, https://www.lammps.org

   Copyright (C) 2026 the nequip-md authors
   This software is distributed under the GNU General Public License, version 2.
------------------------------------------------------------------------- */

#ifndef LMP_PAIR_NEQUIP_H
#define LMP_PAIR_NEQUIP_H

#include "pair.h"
#include "pair_nequip_exchange.h"

#include <cstdint>
#include <string>
#include <vector>

struct nequip_md_model;
struct nequip_md_results;

namespace LAMMPS_NS {

struct ExcludingFix;

class PairNequIP : public Pair {
 public:
  PairNequIP(class LAMMPS *);
  ~PairNequIP() override;
  void compute(int, int) override;
  void settings(int, char **) override;
  void coeff(int, char **) override;
  void init_style() override;
  double init_one(int, int) override;
  void write_restart(FILE *) override;
  void read_restart(FILE *) override;
  void write_restart_settings(FILE *) override;
  void read_restart_settings(FILE *) override;
  void *extract(const char *, int &) override;
  void *extract_peratom(const char *, int &) override;
  int pack_forward_comm(int, int *, double *, int, int *) override;
  void unpack_forward_comm(int, int, double *) override;
  int pack_reverse_comm(int, int, double *) override;
  void unpack_reverse_comm(int, int *, double *) override;
  double memory_usage() override;
  void finish() override;

 protected:
  static constexpr int CENTROID_COMPONENTS = 9;
  static constexpr int OWNER_COMPONENTS = 2;    // process and local index

  nequip_md_model *model;
  double cutoff;         // largest cutoff of the model
  std::string device;    // keyword device; empty: the one that the model was exported for
  int num_threads;       // keyword threads; 0: as many as LAMMPS uses
  bigint max_edges;      // keyword max_edges; 0: no limit
  bool isolated;         // keyword isolated: energies of isolated atoms are part of the energy
  std::string
      neighbors;    // keyword neighbors: lammps, engine, or empty for the faster one on the device
  bool replay;      // keyword replay
  bool verbose;     // keyword verbose
  bool guard;       // keyword guard
  bool own_search;    // the engine finds neighbors, so no list is requested from LAMMPS
  std::vector<int> type_to_model;           // model type of each LAMMPS type, -1 for NULL
  std::string path;                         // path of the artifact
  std::vector<double> isolated_energies;    // energy of each LAMMPS type, computed when needed
  bool masses_checked;                      // whether check_masses() has run since pair_coeff
  bool exclusion_warned;                    // whether this run has warned of exclusions

  // potential that a restart file was written with; empty without a restart file

  struct Restarted {
    std::string checkpoint, precision;
    std::vector<std::string> names;
  };
  Restarted restarted;
  bigint last_build;    // neighbor->ncalls at the last compute

  // Sums on local and ghost atoms, for reverse communication by this class: with newton off, LAMMPS does not
  // communicate values on ghost atoms.

  struct AtomSums {
    std::vector<double> values;    // [nlocal + nghost][width]
    int width = 0;                 // components for each atom

    double *start(int natoms, int components);
  };
  AtomSums forces, virials, centroids;
  AtomSums *communicated;    // array that pack/unpack_reverse_comm communicate
  bool force_warned;         // whether a large force was reported
  double
      training_force;    // largest force on an atom in the training data, in LAMMPS' units; 0: unknown

  // sizes and times of this rank's evaluations since the run began, for verbose

  struct Statistics {
    double steps = 0, replayed = 0, pieces = 0, edges = 0, lists = 0, model = 0, results = 0;
  };
  Statistics statistics;

  int energy_flag;                 // set by fix pair, which needs per-atom energies
  std::vector<double> energies;    // [nlocal + nghost], if energy_flag is set

  // for models with message passing: the atoms that all atoms are or are copies of, on one process
  // as the engine takes them, and the exchange of features on several

  std::vector<GhostExchange::Owner> owners;
  std::vector<int> owner_index;
  GhostExchange ghost_exchange;

  // digests of the model's file before and after loading

  struct Digests {
    uint64_t before, after;
  };

  virtual void allocate();
  void unload();
  std::string load(const char *);
  std::string text(const char *) const;
  std::string name_of(int) const;
  double energy_factor() const;
  void compare_with_restart();
  static uint64_t digest(const char *);
  std::string compare(Digests, const char *);
  int device_index() const;
  void map_types(int, char **);
  void check_special_bonds();
  void check_lists();
  void check_masses();
  void check_trial_deletions();
  void find_isolated_energies();
  bool has_isolated_energies();
  void subtract_isolated(int, const int *, nequip_md_results &) const;
  std::string needs_lists() const;
  std::string exclusions() const;
  bool fix_exists(const ExcludingFix &) const;
  void find_owners();
  void connect_ghosts();
  void check_forces();
  std::string remark() const;
  void add_ghost_sums(AtomSums &, double **);
};

}    // namespace LAMMPS_NS

#endif
