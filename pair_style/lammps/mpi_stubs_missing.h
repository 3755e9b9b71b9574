/* -*- c++ -*- ----------------------------------------------------------
   Pair style nequip for LAMMPS, https://www.lammps.org: what LAMMPS' stand-in
   for MPI lacks, for a LAMMPS that is built without MPI

   Copyright (C) 2026 the nequip-md authors
   This software is distributed under the GNU General Public License, version 2.
------------------------------------------------------------------------- */

#ifndef LMP_MPI_STUBS_MISSING_H
#define LMP_MPI_STUBS_MISSING_H

#include <mpi.h>

#ifdef MPI_STUBS
#define MPI_COMM_TYPE_SHARED 0
#define MPI_INFO_NULL 0

// one process: the ranks of this host are all ranks

inline int MPI_Comm_split_type(MPI_Comm comm, int /*type*/, int /*key*/, int /*info*/,
                               MPI_Comm *result)
{
  *result = comm;
  return 0;
}
#endif

#endif
