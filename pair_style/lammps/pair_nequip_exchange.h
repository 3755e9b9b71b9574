/* -*- c++ -*- ----------------------------------------------------------
   Pair style nequip for LAMMPS, https://www.lammps.org

   Copyright (C) 2026 the nequip-md authors
   This software is distributed under the GNU General Public License, version 2.
------------------------------------------------------------------------- */

#ifndef LMP_PAIR_NEQUIP_EXCHANGE_H
#define LMP_PAIR_NEQUIP_EXCHANGE_H

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <vector>

struct nequip_md_system;

namespace LAMMPS_NS {

// Exchange of the features of ghosts between MPI processes, for models with message passing.
//
// Each ghost gets its features straight from the process that owns the atom, in one message for
// each pair of processes. LAMMPS' own communication would pass them on from neighbor to neighbor
// in six stages, and its buffers would have to be as wide as the features.

class GhostExchange {
 public:
  // The atom that an atom is or is a copy of.

  struct Owner {
    int rank, index;    // MPI process, and local index there
  };

  // Traffic of one call of the callback, summed over evaluations.

  struct Traffic {
    double bytes = 0.0;      // sent to other processes
    double seconds = 0.0;    // waiting for other processes included
  };

  // Finds out which atoms each process sends to which, when lists have been rebuilt. All processes
  // of the communicator call it. owners: of local and ghost atoms; needed: whether the features
  // of each atom are read here, which matters for ghosts.

  void connect(MPI_Comm, int nlocal, const std::vector<Owner> &owners,
               const std::vector<char> &needed);

  // Sets callback and context of a system that is about to be evaluated.

  void attach(nequip_md_system &);

  // Traffic of each call in an evaluation: forward for each layer, then backward as often.

  const std::vector<Traffic> &traffic() const
  {
    return calls;
  }
  void reset_traffic()
  {
    calls.clear();
  }

  double memory_usage() const;

 private:
  // Atoms whose features travel between this process and others, ordered by process.

  struct Atoms {
    std::vector<int> index;    // of local atoms or of ghosts
    std::vector<int> start;    // [processes + 1], where those for or from each process begin
  };

  // Rows of features that lie in the model's memory.

  struct Features {
    char *values;
    std::size_t width, bytes_each;
  };

  static int callback(void *, int, void *, long long, long long, long long, int, void *);
  void exchange(bool, Features, int64_t);
  void number_rows(int64_t);
  void start_receiving(const Atoms &, std::size_t);
  void start_sending(const Atoms &, std::size_t);
  void wait();
  void pack(const Atoms &, Features);
  void unpack(const Atoms &, Features, bool);
  void copy_images(Features, bool);

  static void add(const char *, Features, int64_t);

  MPI_Comm world;
  int me = 0, nprocs = 1;
  Atoms owned;                           // local atoms that are ghosts on other processes
  Atoms ghosts;                          // ghosts that other processes own
  std::vector<int> images, originals;    // ghosts that are copies of local atoms, and these

  const nequip_md_system *system = nullptr;    // that is evaluated
  std::vector<int64_t> row;                    // of each atom; -1 for atoms outside the model
  bool numbered = false;                       // rows are those of this evaluation

  std::vector<char> outgoing, incoming;
  std::vector<MPI_Request> requests;
  std::vector<MPI_Status> statuses;
  std::vector<Traffic> calls;
  std::size_t call = 0;    // number of the next call in this evaluation
};

}    // namespace LAMMPS_NS

#endif
