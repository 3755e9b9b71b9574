/* -*- c++ -*- ----------------------------------------------------------
   Pair style nequip for LAMMPS, https://www.lammps.org

   Copyright (C) 2026 the nequip-md authors
   This software is distributed under the GNU General Public License, version 2.
------------------------------------------------------------------------- */

#ifndef LMP_PAIR_NEQUIP_EXCHANGE_H
#define LMP_PAIR_NEQUIP_EXCHANGE_H

#include <mpi.h>

#include <cstddef>
#include <vector>

struct nequip_md_exchange;

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

  // Traffic of one transfer in an evaluation, summed over evaluations.

  struct Traffic {
    double bytes = 0.0;      // sent to other processes
    double seconds = 0.0;    // waiting for other processes included
  };

  // Finds out which atoms each process sends to which, when lists have been rebuilt. All processes
  // of the communicator call it. owners: of local and ghost atoms; needed: whether the features
  // of each atom are read here, which matters for ghosts.

  void connect(MPI_Comm, int nlocal, const std::vector<Owner> &owners,
               const std::vector<char> &needed);

  // What the engine needs in an evaluation that begins now.

  nequip_md_exchange begin();

  // Traffic of each transfer: forward for each layer, then backward as often.

  const std::vector<Traffic> &traffic() const
  {
    return transfers;
  }
  void reset_traffic()
  {
    transfers.clear();
  }

  double memory_usage() const;

 private:
  // Atoms whose features travel between this process and others, ordered by process.

  struct Atoms {
    std::vector<int> index;    // of local atoms or of ghosts
    std::vector<int> start;    // [processes + 1], where those for or from each process begin
  };

  static int transfer(void *, int, const void *, void *, long long);
  void communicate(const Atoms &, const void *, const Atoms &, void *, std::size_t);

  MPI_Comm world;
  int nprocs = 1;
  Atoms owned;                           // local atoms that are ghosts on other processes
  Atoms ghosts;                          // ghosts that other processes own
  std::vector<int> images, originals;    // ghosts that are copies of local atoms, and these

  std::vector<MPI_Request> requests;
  std::vector<MPI_Status> statuses;
  std::vector<Traffic> transfers;
  std::size_t number = 0;    // of the next transfer in this evaluation
};

}    // namespace LAMMPS_NS

#endif
