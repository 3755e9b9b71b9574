/* ----------------------------------------------------------------------
   Pair style nequip for LAMMPS, https://www.lammps.org

   Copyright (C) 2026 the nequip-md authors
   This software is distributed under the GNU General Public License, version 2.
------------------------------------------------------------------------- */

// Restart files: writing and reading of settings, and of the model's path and identity.

#include "pair_nequip.h"

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "utils.h"

#include "nequip_md_engine.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>

using namespace LAMMPS_NS;

static constexpr int RESTART_TEXT_SIZE = 1 << 16;    // a restart file with a longer text is damaged

/* ----------------------------------------------------------------------
   restart: keywords, the model's path and identity, and the names of the types
------------------------------------------------------------------------- */

static void write_text(FILE *fp, const std::string &text)
{
  const int size = static_cast<int>(text.size());
  fwrite(&size, sizeof(int), 1, fp);
  fwrite(text.data(), 1, size, fp);
}

static void damaged(LAMMPS *lmp)
{
  lmp->error->all(
      FLERR,
      "The settings of pair style nequip in the restart file are damaged, or of another version of "
      "nequip-md; use another restart file, or a data file");
}

static std::string read_text(FILE *fp, LAMMPS *lmp, MPI_Comm world)
{
  int me, size = 0;
  MPI_Comm_rank(world, &me);
  if (me == 0) utils::sfread(FLERR, &size, sizeof(int), 1, fp, nullptr, lmp->error);
  MPI_Bcast(&size, 1, MPI_INT, 0, world);
  if (size < 0 || size > RESTART_TEXT_SIZE) damaged(lmp);
  std::string text(size, ' ');
  if (size == 0) return text;
  if (me == 0) utils::sfread(FLERR, &text[0], 1, size, fp, nullptr, lmp->error);
  MPI_Bcast(&text[0], size, MPI_CHAR, 0, world);
  return text;
}

static std::string read_one_of(FILE *fp, LAMMPS *lmp, MPI_Comm world,
                               const std::vector<std::string> &known)
{
  const std::string text = read_text(fp, lmp, world);
  if (std::find(known.begin(), known.end(), text) == known.end()) damaged(lmp);
  return text;
}

static bigint read_count(FILE *fp, LAMMPS *lmp, MPI_Comm world, bigint largest)
{
  const std::string text = read_text(fp, lmp, world);
  char *end = nullptr;
  errno = 0;
  const bigint count = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || end != text.c_str() + text.size() || errno != 0 || count < 0 ||
      count > largest)
    damaged(lmp);
  return count;
}

/* ----------------------------------------------------------------------
   called on rank 0 only
------------------------------------------------------------------------- */

void PairNequIP::write_restart(FILE *fp)
{
  write_restart_settings(fp);
  write_text(fp, path);
  write_text(fp, text("checkpoint_sha256"));
  write_text(fp, text("precision"));
  for (int i = 1; i <= atom->ntypes; i++)
    write_text(fp, name_of(i));
}

void PairNequIP::write_restart_settings(FILE *fp)
{
  write_text(fp, device);
  write_text(fp, isolated ? "yes" : "no");
  write_text(fp, std::to_string(num_threads));
  write_text(fp, std::to_string(max_edges));
  write_text(fp, neighbors);
  write_text(fp, replay ? "yes" : "no");
  write_text(fp, verbose ? "yes" : "no");
  write_text(fp, guard ? "yes" : "no");
}

void PairNequIP::read_restart_settings(FILE *fp)
{
  const std::vector<std::string> answers = {"yes", "no"};
  device = read_one_of(fp, lmp, world, {"", "cpu", "cuda"});
  isolated = read_one_of(fp, lmp, world, answers) == "yes";
  num_threads = static_cast<int>(read_count(fp, lmp, world, NEQUIP_MD_MAX_THREADS));
  max_edges = read_count(fp, lmp, world, MAXBIGINT);
  neighbors = read_one_of(fp, lmp, world, {"", "engine", "lammps"});
  replay = read_one_of(fp, lmp, world, answers) == "yes";
  verbose = read_one_of(fp, lmp, world, answers) == "yes";
  guard = read_one_of(fp, lmp, world, answers) == "yes";
}

/* ----------------------------------------------------------------------
   load the model from the path in the restart file; if that fails, pair_coeff must load it
------------------------------------------------------------------------- */

void PairNequIP::read_restart(FILE *fp)
{
  read_restart_settings(fp);
  const std::string file = read_text(fp, lmp, world);
  restarted.checkpoint = read_text(fp, lmp, world);
  restarted.precision = read_text(fp, lmp, world);
  restarted.names.assign(atom->ntypes + 1, "");
  std::string list;
  for (int i = 1; i <= atom->ntypes; i++) {
    restarted.names[i] = read_text(fp, lmp, world);
    list += " " + restarted.names[i];
  }

  allocate();
  const std::string problem = load(file.c_str());
  if (!problem.empty()) {
    if (comm->me == 0)
      error->warning(FLERR, "The restart file's model cannot be taken up: " + problem +
                                "; after read_restart, give: pair_coeff * * MODEL.pt2" + list);
    return;
  }
  std::vector<char *> arguments;
  for (int i = 1; i <= atom->ntypes; i++)
    arguments.push_back(&restarted.names[i][0]);
  map_types(atom->ntypes, arguments.data());
  compare_with_restart();
}

/* ----------------------------------------------------------------------
   warn if the model is not the one that the restart file was written with
------------------------------------------------------------------------- */

void PairNequIP::compare_with_restart()
{
  if (restarted.names.empty()) return;
  std::string differences;
  const auto compare = [&](const std::string &what, const std::string &before,
                           const std::string &now) {
    if (before != now)
      differences +=
          (differences.empty() ? "" : "; ") + what + " was '" + before + "' and is '" + now + "'";
  };
  compare("the checkpoint's SHA-256", restarted.checkpoint, text("checkpoint_sha256"));
  compare("the precision", restarted.precision, text("precision"));
  for (int i = 1; i <= atom->ntypes; i++)
    compare("the name of atom type " + std::to_string(i), restarted.names[i], name_of(i));
  if (!differences.empty() && comm->me == 0)
    error->warning(FLERR, "Pair style nequip continues a restart file with another potential: " +
                              differences);
}
