/* ----------------------------------------------------------------------
   Pair style nequip for LAMMPS, https://www.lammps.org

   Copyright (C) 2026 the nequip-md authors
   This software is distributed under the GNU General Public License, version 2.
------------------------------------------------------------------------- */

#include "pair_nequip_exchange.h"

#include "nequip_md_engine.h"

#include <algorithm>
#include <cstring>

using namespace LAMMPS_NS;

// MPI counts bytes in an int, so longer messages are sent in pieces.

static constexpr size_t LONGEST_MESSAGE = size_t(1) << 30;
static constexpr int TAG = 20049;    // not one of LAMMPS' own

// ----------------------------------------------------------------------

void GhostExchange::connect(MPI_Comm world_, int nlocal, const std::vector<Owner> &owners,
                            const std::vector<char> &needed)
{
  world = world_;
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

  const auto join = [](Atoms &atoms, const std::vector<int> &counts) {
    atoms.start.assign(counts.size() + 1, 0);
    for (size_t rank = 0; rank < counts.size(); rank++)
      atoms.start[rank + 1] = atoms.start[rank] + counts[rank];
    atoms.index.resize(atoms.start.back());
  };
  join(ghosts, asked);
  join(owned, requested);

  // the indices travel against the direction of the features

  outgoing.resize(ghosts.index.size() * sizeof(int));
  for (int rank = 0; rank < nprocs; rank++) {
    std::copy(wanted[rank].begin(), wanted[rank].end(), ghosts.index.begin() + ghosts.start[rank]);
    if (!theirs[rank].empty())
      memcpy(outgoing.data() + ghosts.start[rank] * sizeof(int), theirs[rank].data(),
             theirs[rank].size() * sizeof(int));
  }
  start_receiving(owned, sizeof(int));
  start_sending(ghosts, sizeof(int));
  wait();
  if (!owned.index.empty())
    memcpy(owned.index.data(), incoming.data(), owned.index.size() * sizeof(int));
}

// ----------------------------------------------------------------------

void GhostExchange::attach(nequip_md_system &evaluated)
{
  system = &evaluated;
  numbered = false;
  call = 0;
  evaluated.exchange = callback;
  evaluated.exchange_context = this;
}

// ----------------------------------------------------------------------

int GhostExchange::callback(void *context, int reduce, void *features, long long owned,
                            long long /*ghosts*/, long long width, int bytes_each,
                            void * /*stream*/)
{
  GhostExchange &self = *static_cast<GhostExchange *>(context);
  self.exchange(reduce, {static_cast<char *>(features), size_t(width), size_t(bytes_each)}, owned);
  return 0;
}

/* ----------------------------------------------------------------------
   forward: rows of ghosts become those of their owners; reverse: rows of ghosts are added to them,
   in the order of the processes, so that repeated sums are equal to the last digit
------------------------------------------------------------------------- */

void GhostExchange::exchange(bool reverse, Features features, int64_t num_owned)
{
  const double begin = MPI_Wtime();
  if (!numbered) number_rows(num_owned);
  const Atoms &source = reverse ? ghosts : owned, &target = reverse ? owned : ghosts;
  const size_t bytes = features.width * features.bytes_each;
  start_receiving(target, bytes);
  pack(source, features);
  start_sending(source, bytes);
  copy_images(features, reverse);
  wait();
  unpack(target, features, reverse);

  if (calls.size() <= call) calls.resize(call + 1);
  calls[call].bytes += static_cast<double>(source.index.size() * bytes);
  calls[call].seconds += MPI_Wtime() - begin;
  call++;
}

/* ----------------------------------------------------------------------
   the engine's order of rows: centers of the model's types, phantoms, then all other atoms.
   Types may change without new lists, so this is done in each evaluation
------------------------------------------------------------------------- */

void GhostExchange::number_rows(int64_t num_owned)
{
  constexpr int64_t UNKNOWN = -2;
  row.assign(system->num_all, UNKNOWN);
  int64_t centre = 0, other = num_owned;
  for (int k = 0; k < system->num_centres; k++) {
    const int i = system->centres ? system->centres[k] : k;
    row[i] = system->type_map[system->types[i]] < 0 ? -1 : centre++;
  }
  for (int64_t &number : row)
    if (number == UNKNOWN) number = other++;
  numbered = true;
}

// ----------------------------------------------------------------------

void GhostExchange::start_receiving(const Atoms &atoms, size_t bytes)
{
  requests.clear();
  incoming.resize(atoms.index.size() * bytes);
  for (int rank = 0; rank < nprocs; rank++) {
    const size_t end = atoms.start[rank + 1] * bytes;
    for (size_t at = atoms.start[rank] * bytes; at < end; at += LONGEST_MESSAGE) {
      requests.emplace_back();
      MPI_Irecv(incoming.data() + at, static_cast<int>(std::min(LONGEST_MESSAGE, end - at)),
                MPI_BYTE, rank, TAG, world, &requests.back());
    }
  }
}

void GhostExchange::start_sending(const Atoms &atoms, size_t bytes)
{
  for (int rank = 0; rank < nprocs; rank++) {
    const size_t end = atoms.start[rank + 1] * bytes;
    for (size_t at = atoms.start[rank] * bytes; at < end; at += LONGEST_MESSAGE) {
      requests.emplace_back();
      MPI_Isend(outgoing.data() + at, static_cast<int>(std::min(LONGEST_MESSAGE, end - at)),
                MPI_BYTE, rank, TAG, world, &requests.back());
    }
  }
}

void GhostExchange::wait()
{
  statuses.resize(requests.size());
  MPI_Waitall(static_cast<int>(requests.size()), requests.data(), statuses.data());
}

// ----------------------------------------------------------------------

void GhostExchange::pack(const Atoms &atoms, Features features)
{
  const size_t bytes = features.width * features.bytes_each;
  outgoing.resize(atoms.index.size() * bytes);
  char *to = outgoing.data();
  for (const int atom : atoms.index) {
    if (row[atom] >= 0)
      memcpy(to, features.values + row[atom] * bytes, bytes);
    else
      memset(to, 0, bytes);
    to += bytes;
  }
}

void GhostExchange::unpack(const Atoms &atoms, Features features, bool reverse)
{
  const size_t bytes = features.width * features.bytes_each;
  const char *from = incoming.data();
  for (const int atom : atoms.index) {
    if (row[atom] >= 0) {
      if (reverse)
        add(from, features, row[atom]);
      else
        memcpy(features.values + row[atom] * bytes, from, bytes);
    }
    from += bytes;
  }
}

void GhostExchange::copy_images(Features features, bool reverse)
{
  const size_t bytes = features.width * features.bytes_each;
  for (size_t k = 0; k < images.size(); k++) {
    const int64_t image = row[images[k]], original = row[originals[k]];
    if (original < 0) continue;
    char *const of_image = features.values + image * bytes;
    if (reverse)
      add(of_image, features, original);
    else
      memcpy(of_image, features.values + original * bytes, bytes);
  }
}

/* ----------------------------------------------------------------------
   add a row, which need not be aligned for its numbers, to row number `to`
------------------------------------------------------------------------- */

template <typename Number> static void add_numbers(const char *from, char *to, size_t width)
{
  Number *const sum = reinterpret_cast<Number *>(to);
  for (size_t k = 0; k < width; k++) {
    Number value;
    memcpy(&value, from + k * sizeof(Number), sizeof(Number));
    sum[k] += value;
  }
}

void GhostExchange::add(const char *from, Features features, int64_t to)
{
  char *const target = features.values + to * features.width * features.bytes_each;
  if (features.bytes_each == sizeof(double))
    add_numbers<double>(from, target, features.width);
  else
    add_numbers<float>(from, target, features.width);
}

// ----------------------------------------------------------------------

double GhostExchange::memory_usage() const
{
  double bytes = outgoing.capacity() + incoming.capacity() + row.capacity() * sizeof(int64_t);
  for (const std::vector<int> *atoms : {&owned.index, &ghosts.index, &images, &originals})
    bytes += atoms->capacity() * sizeof(int);
  return bytes;
}
