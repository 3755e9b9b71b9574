/* -*- c++ -*- ----------------------------------------------------------
   Pair style nequip for LAMMPS, https://www.lammps.org: its entry in the list of styles
   of a LAMMPS that is built with it; a plugin has none

   Copyright (C) 2026 the nequip-md authors
   This software is distributed under the GNU General Public License, version 2.
------------------------------------------------------------------------- */

#ifdef PAIR_CLASS
// clang-format off
PairStyle(nequip,PairNequIP);
// clang-format on
#else
#include "pair_nequip.h"    // IWYU pragma: export
#endif
