/* ----------------------------------------------------------------------
   Pair style nequip for LAMMPS, https://www.lammps.org

   Copyright (C) 2026 the nequip-md authors
   This software is distributed under the GNU General Public License, version 2.
------------------------------------------------------------------------- */

#include "pair_nequip_exchange.h"

#include "nequip_md_engine.h"

#include <algorithm>

using namespace LAMMPS_NS;

// MPI counts bytes in an int, so longer messages are sent in pieces.

static constexpr size_t LONGEST_MESSAGE = size_t(1) << 30;
static constexpr int TAG = 20049;    // not one of LAMMPS' own

// ----------------------------------------------------------------------

void GhostExchange::connect(MPI_Comm communicator, int nlocal, const std::vector<Owner> &owners,
                            const std::vector<char> &needed)
{
  world = communicator;
  int me;
  MPI_Comm_rank(world, &me);
  MPI_Comm_size(world, &nprocs);

  images.clear();
  originals.clear();
  std::vector<std::vector<int>> wanted(nprocs), theirs(nprocs);    // ghosts, and indices of owners
  for (int i = nlocal; i < static_cast<int>(owners.size()); i++) {
    if (!needed[i]) continue;
    const Owner &owner = owners[i];
    if (owner.rank == me) {
      images.push_back(i);
      originals.push_back(owner.index);
    } else {
      wanted[owner.rank].push_back(i);
      theirs[owner.rank].push_back(owner.index);
    }
  }

  std::vector<int> asked(nprocs), requested(nprocs);
  for (int rank = 0; rank < nprocs; rank++)
    asked[rank] = static_cast<int>(wanted[rank].size());
  MPI_Alltoall(asked.data(), 1, MPI_INT, requested.data(), 1, MPI_INT, world);

  const auto begin_lists = [this](Atoms &atoms, const std::vector<int> &counts) {
    atoms.start.assign(nprocs + 1, 0);
    for (int rank = 0; rank < nprocs; rank++)
      atoms.start[rank + 1] = atoms.start[rank] + counts[rank];
    atoms.index.resize(atoms.start.back());
  };
  const auto join = [](const std::vector<std::vector<int>> &lists, std::vector<int> &joined) {
    auto at = joined.begin();
    for (const std::vector<int> &list : lists)
      at = std::copy(list.begin(), list.end(), at);
  };
  begin_lists(ghosts, asked);
  begin_lists(owned, requested);
  join(wanted, ghosts.index);

  // these indices travel against the direction of the features

  std::vector<int> indices(ghosts.index.size());
  join(theirs, indices);
  communicate(ghosts, indices.data(), owned, owned.index.data(), sizeof(int));
}

// ----------------------------------------------------------------------

nequip_md_exchange GhostExchange::begin()
{
  number = 0;
  nequip_md_exchange exchange = {};
  exchange.struct_size = sizeof(exchange);
  exchange.transfer = transfer;
  exchange.context = this;
  exchange.num_sent = static_cast<int>(owned.index.size());
  exchange.sent = owned.index.data();
  exchange.num_received = static_cast<int>(ghosts.index.size());
  exchange.received = ghosts.index.data();
  exchange.num_images = static_cast<int>(images.size());
  exchange.images = images.data();
  exchange.originals = originals.data();
  return exchange;
}

/* ----------------------------------------------------------------------
   called by the engine: features go from owners to ghosts, gradients from ghosts to owners
------------------------------------------------------------------------- */

int GhostExchange::transfer(void *context, int reduce, const void *outgoing, void *incoming,
                            long long bytes_each)
{
  GhostExchange &self = *static_cast<GhostExchange *>(context);
  const Atoms &from = reduce ? self.ghosts : self.owned, &to = reduce ? self.owned : self.ghosts;
  const double begin = MPI_Wtime();
  self.communicate(from, outgoing, to, incoming, static_cast<size_t>(bytes_each));

  if (self.transfers.size() <= self.number) self.transfers.resize(self.number + 1);
  Traffic &traffic = self.transfers[self.number++];
  traffic.bytes += static_cast<double>(from.index.size()) * static_cast<double>(bytes_each);
  traffic.seconds += MPI_Wtime() - begin;
  return 0;
}

// ----------------------------------------------------------------------

void GhostExchange::communicate(const Atoms &from, const void *outgoing, const Atoms &to,
                                void *incoming, size_t bytes_each)
{
  requests.clear();
  const auto start = [&](const Atoms &atoms, const auto &message) {
    for (int rank = 0; rank < nprocs; rank++) {
      const size_t end = atoms.start[rank + 1] * bytes_each;
      for (size_t at = atoms.start[rank] * bytes_each; at < end; at += LONGEST_MESSAGE) {
        requests.emplace_back();
        message(at, static_cast<int>(std::min(LONGEST_MESSAGE, end - at)), rank);
      }
    }
  };
  start(to, [&](size_t at, int size, int rank) {
    MPI_Irecv(static_cast<char *>(incoming) + at, size, MPI_BYTE, rank, TAG, world,
              &requests.back());
  });
  char *const source = const_cast<char *>(static_cast<const char *>(outgoing));
  start(from, [&](size_t at, int size, int rank) {
    MPI_Isend(source + at, size, MPI_BYTE, rank, TAG, world, &requests.back());
  });
  statuses.resize(requests.size());
  MPI_Waitall(static_cast<int>(requests.size()), requests.data(), statuses.data());
}

// ----------------------------------------------------------------------

double GhostExchange::memory_usage() const
{
  double bytes = 0.0;
  for (const std::vector<int> *atoms : {&owned.index, &ghosts.index, &images, &originals})
    bytes += atoms->capacity() * sizeof(int);
  return bytes;
}
