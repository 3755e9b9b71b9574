/* ----------------------------------------------------------------------
   Plugin entry of pair style nequip for LAMMPS, https://www.lammps.org

   Copyright (C) 2026 the nequip-md authors
   This software is distributed under the GNU General Public License, version 2.
------------------------------------------------------------------------- */

#include "error.h"
#include "lammps.h"
#include "pair_nequip.h"

#include <string>

using namespace LAMMPS_NS;

namespace {

// Structure that LAMMPS' plugin loader reads. Installed headers of LAMMPS do not declare it.
struct LammpsPlugin {
  const char *version;
  const char *style;
  const char *name;
  const char *info;
  const char *author;
  union {
    void *(*v1)(LAMMPS *);
    void *(*v2)(LAMMPS *, int, char **);
  } creator;
  void *handle;
};

using RegisterFunction = void (*)(LammpsPlugin *, void *);

// The check is here and not at registration, so that inputs without this pair style are not affected.
void *create_pair_nequip(LAMMPS *lmp)
{
  if (lmp->num_ver != NEQUIP_MD_LAMMPS_RELEASE)
    lmp->error->all(FLERR, std::string("Pair style nequip was built for LAMMPS release ") +
                               std::to_string(NEQUIP_MD_LAMMPS_RELEASE) + ", this is " +
                               std::to_string(lmp->num_ver) +
                               "; build it for this one with: nequip-md-lammps build");
  return new PairNequIP(lmp);
}

}    // namespace

extern "C" __attribute__((visibility("default"))) void lammpsplugin_init(void *lmp, void *handle,
                                                                         void *regfunc)
{
  LammpsPlugin plugin = {};
  plugin.version = static_cast<LAMMPS *>(lmp)->version;
  plugin.style = "pair";
  plugin.name = "nequip";
  plugin.info = "NequIP and Allegro potentials from .pt2 artifacts (nequip-md)";
  plugin.author = "the nequip-md authors";
  plugin.creator.v1 = &create_pair_nequip;
  plugin.handle = handle;
  reinterpret_cast<RegisterFunction>(regfunc)(&plugin, lmp);
}
