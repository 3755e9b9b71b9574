/* ----------------------------------------------------------------------
   Pair style nequip for LAMMPS, https://www.lammps.org

   Copyright (C) 2026 the nequip-md authors
   This software is distributed under the GNU General Public License, version 2.
------------------------------------------------------------------------- */

// Checks of the settings of LAMMPS that pair style nequip depends on, and of the forces in a run.

#include "pair_nequip.h"

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "modify.h"
#include "neighbor.h"
#include "update.h"

#include "nequip_md_engine.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

using namespace LAMMPS_NS;

static constexpr int GROUP_ALL = 0;
static constexpr double FORCE_FACTOR =
    10.0;    // forces larger than this times the largest training force are reported

// Fixes that exclude a group of atoms from all neighbor lists. They do so in their init(), which comes after that of
// the pair style. Fixes that delete atoms on trial move them to this group, and assume that they then have no energy.

struct LAMMPS_NS::ExcludingFix {
  const char *style;
  bool deletes;
};

static constexpr ExcludingFix EXCLUDING_FIXES[] = {
    {"gcmc", true}, {"charge/regulation", true}, {"widom", false}};

/* ----------------------------------------------------------------------
   whether a fix of this style or a variant of it is defined
------------------------------------------------------------------------- */

bool PairNequIP::fix_exists(const ExcludingFix &fix) const
{
  return !modify->get_fix_by_style(std::string("^") + fix.style).empty();
}

/* ----------------------------------------------------------------------
   setting that only LAMMPS' own neighbor lists respect;
   empty if all atoms around an atom are its neighbors
------------------------------------------------------------------------- */

std::string PairNequIP::needs_lists() const
{
  if (force->pair != this) return "pair style hybrid";
  for (const ExcludingFix &fix : EXCLUDING_FIXES)
    if (fix_exists(fix)) return std::string("fix ") + fix.style;
  return exclusions();
}

/* ----------------------------------------------------------------------
   neigh_modify setting that excludes atoms from the lists; empty if there is none
------------------------------------------------------------------------- */

std::string PairNequIP::exclusions() const
{
  if (neighbor->nex_type || neighbor->nex_group || neighbor->nex_mol) return "neigh_modify exclude";
  if (neighbor->includegroup) return "neigh_modify include";
  return "";
}

/* ----------------------------------------------------------------------
   called when lists are rebuilt, since bonds and exclusions can change during a run
------------------------------------------------------------------------- */

void PairNequIP::check_lists()
{
  check_special_bonds();
  if (own_search && !exclusions().empty())
    error->all(FLERR,
               "Pair style nequip finds neighbors itself, and " + exclusions() +
                   " came when the run was already set up; use pair_style nequip neighbors lammps");
  if (!isolated || exclusion_warned) return;
  for (int k = 0; k < neighbor->nex_group; k++)
    if (neighbor->ex1_group[k] == GROUP_ALL || neighbor->ex2_group[k] == GROUP_ALL)
      exclusion_warned = true;
  if (exclusion_warned && has_isolated_energies() && comm->me == 0)
    error->warning(
        FLERR,
        "Neigh_modify exclude takes atoms out of all neighbor lists, and pair style nequip gives "
        "them the energies of isolated atoms; to compare energies of different numbers of atoms, "
        "use pair_style nequip isolated no");
}

/* ----------------------------------------------------------------------
   energies of atoms without neighbors for each atom type; 0 for types outside the model
------------------------------------------------------------------------- */

void PairNequIP::find_isolated_energies()
{
  isolated_energies.assign(atom->ntypes + 1, 0.0);
  for (int i = 1; i <= atom->ntypes; i++)
    if (type_to_model[i] >= 0 &&
        nequip_md_isolated_energy(model, type_to_model[i], &isolated_energies[i]) != NEQUIP_MD_OK)
      error->one(FLERR, std::string("Pair style nequip: ") + nequip_md_last_error(model));
}

bool PairNequIP::has_isolated_energies()
{
  find_isolated_energies();
  return std::any_of(isolated_energies.begin(), isolated_energies.end(), [](double e) {
    return e != 0.0;
  });
}

void PairNequIP::subtract_isolated(int num_centres, const int *atoms,
                                   nequip_md_results &results) const
{
  for (int k = 0; k < num_centres; k++) {
    const int i = atoms ? atoms[k] : k;
    const double energy = isolated_energies[atom->type[i]];
    results.energy -= energy;
    if (results.atom_energies) results.atom_energies[i] -= energy;
  }
}

/* ----------------------------------------------------------------------
   an atom deleted on trial would keep its isolated energy, but an inserted atom adds it,
   so no chemical potential would be right for both
------------------------------------------------------------------------- */

void PairNequIP::check_trial_deletions()
{
  for (const ExcludingFix &fix : EXCLUDING_FIXES)
    if (fix.deletes && fix_exists(fix) && has_isolated_energies())
      error->all(
          FLERR,
          std::string("Pair style nequip counts the energies of isolated atoms, with which fix ") +
              fix.style + " gives wrong numbers of atoms; use pair_style nequip isolated no");
}

/* ----------------------------------------------------------------------
   special_bonds must not remove or scale neighbors: the model needs all of them;
   called from compute(), as only there a hybrid style sets the factors of this style
------------------------------------------------------------------------- */

void PairNequIP::check_special_bonds()
{
  const double *const factor = force->special_lj;
  const bool whole = factor[1] == 1.0 && factor[2] == 1.0 && factor[3] == 1.0;
  if (atom->molecular == Atom::ATOMIC || whole) return;

  const auto has_partner = [&](int i) {
    // bonds are stored in the molecule template
    if (atom->molecular == Atom::TEMPLATE) return atom->molindex[i] >= 0;
    for (int kind = 1, k = 0; kind <= 3; kind++)
      for (; k < atom->nspecial[i][kind - 1]; k++) {
        if (factor[kind] == 1.0) continue;
        const int partner = atom->map(atom->special[i][k]);
        if (partner >= 0 && type_to_model[atom->type[partner]] >= 0) return true;
      }
    return false;
  };
  tagint here = 0, anywhere;
  for (int i = 0; i < atom->nlocal && here == 0; i++)
    if (type_to_model[atom->type[i]] >= 0 && has_partner(i)) here = atom->tag[i];
  MPI_Allreduce(&here, &anywhere, 1, MPI_LMP_TAGINT, MPI_MAX, world);
  if (anywhere)
    error->all(FLERR, "Pair style nequip needs bonded atoms as full neighbors, but special_bonds "
                      "leaves out or scales "
                      "those of atom ID " +
                          std::to_string(anywhere) +
                          "; use special_bonds lj 1 1 1, or in a hybrid style pair_modify pair "
                          "nequip special lj 1 1 1");
}

/* ----------------------------------------------------------------------
   warn if a force is much larger than those in the training data
------------------------------------------------------------------------- */

void PairNequIP::check_forces()
{
  if (force_warned) return;
  int worst = -1;
  double largest = FORCE_FACTOR * training_force;
  for (int i = 0; i < atom->nlocal; i++) {
    const double *const f = &forces.values[3 * static_cast<size_t>(i)];
    const double size = std::sqrt(f[0] * f[0] + f[1] * f[1] + f[2] * f[2]);
    if (size <= largest) continue;
    largest = size;
    worst = i;
  }
  if (worst < 0) return;
  force_warned = true;
  char sentence[256];
  snprintf(
      sentence, sizeof(sentence),
      "Pair style nequip: the force on an atom is %.3g, the largest one in the training data %.3g "
      "(force units); the run is probably leaving what the model knows (atom ID ",
      largest, training_force);
  error->warning(FLERR, sentence + std::to_string(atom->tag[worst]) + remark());
}

/* ----------------------------------------------------------------------
   end of a warning of the guard: the step, and how to turn the guard off
------------------------------------------------------------------------- */

std::string PairNequIP::remark() const
{
  return ", step " + std::to_string(update->ntimestep) +
         "); this is said once, pair_style nequip guard no turns it off";
}
