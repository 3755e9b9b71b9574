/* ----------------------------------------------------------------------
   Pair style nequip for LAMMPS, https://www.lammps.org

   Copyright (C) 2026 the nequip-md authors
   This software is distributed under the GNU General Public License, version 2.
------------------------------------------------------------------------- */

// Communication of pair style nequip: owners of ghost atoms, and sums on ghost atoms.

#include "pair_nequip.h"

#include "atom.h"
#include "comm.h"
#include "neigh_list.h"

#include <algorithm>

using namespace LAMMPS_NS;

// ----------------------------------------------------------------------

double *PairNequIP::AtomSums::start(int natoms, int components)
{
  width = components;
  values.assign(static_cast<size_t>(natoms) * width, 0.0);
  return values.data();
}

// ----------------------------------------------------------------------

void PairNequIP::find_owners()
{
  owners.resize(atom->nlocal + atom->nghost);
  for (int i = 0; i < atom->nlocal; i++)
    owners[i] = {comm->me, i};
  comm->forward_comm(this);
  if (comm->nprocs > 1) return;
  owner_index.clear();
  for (const GhostExchange::Owner &owner : owners)
    owner_index.push_back(owner.index);
}

/* ----------------------------------------------------------------------
   the exchange leaves out ghosts that are in no list of neighbors, as there are if other styles
   reach farther
------------------------------------------------------------------------- */

void PairNequIP::connect_ghosts()
{
  std::vector<char> needed(owners.size(), own_search);
  if (!own_search)
    for (int ii = 0; ii < list->inum; ii++) {
      const int i = list->ilist[ii];
      for (int jj = 0; jj < list->numneigh[i]; jj++)
        needed[list->firstneigh[i][jj] & NEIGHMASK] = true;
    }
  ghost_exchange.connect(world, atom->nlocal, owners, needed);
}

/* ----------------------------------------------------------------------
   forward communication of the process and the local index of the atom that a ghost is a copy of
------------------------------------------------------------------------- */

int PairNequIP::pack_forward_comm(int n, int *sendlist, double *buf, int /*pbc_flag*/,
                                  int * /*pbc*/)
{
  for (int k = 0; k < n; k++) {
    const GhostExchange::Owner &owner = owners[sendlist[k]];
    buf[OWNER_COMPONENTS * k] = owner.rank;
    buf[OWNER_COMPONENTS * k + 1] = owner.index;
  }
  return OWNER_COMPONENTS * n;
}

void PairNequIP::unpack_forward_comm(int n, int first, double *buf)
{
  for (int k = 0; k < n; k++)
    owners[first + k] = {static_cast<int>(buf[OWNER_COMPONENTS * k]),
                         static_cast<int>(buf[OWNER_COMPONENTS * k + 1])};
}

/* ----------------------------------------------------------------------
   reverse communication of sums on ghost atoms
------------------------------------------------------------------------- */

int PairNequIP::pack_reverse_comm(int n, int first, double *buf)
{
  const int size = n * communicated->width;
  std::copy_n(communicated->values.data() + first * communicated->width, size, buf);
  return size;
}

void PairNequIP::unpack_reverse_comm(int n, int *sendlist, double *buf)
{
  const int width = communicated->width;
  for (int k = 0; k < n; k++)
    for (int c = 0; c < width; c++)
      communicated->values[sendlist[k] * width + c] += *buf++;
}

// ----------------------------------------------------------------------

void PairNequIP::add_ghost_sums(AtomSums &sums, double **array)
{
  communicated = &sums;

  // releases before 2025 do not take the width as an argument, but use the larger of the two

  comm_reverse = comm_reverse_off = sums.width;
  comm->reverse_comm(this);
  comm_reverse_off = CENTROID_COMPONENTS;    // the next init allocates buffers of this size
  const int nlocal = atom->nlocal;
  const double *value = sums.values.data();
  for (int i = 0; i < nlocal; i++)
    for (int c = 0; c < sums.width; c++)
      array[i][c] += *value++;
}
