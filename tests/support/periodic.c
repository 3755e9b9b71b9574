/* A program that has no periodic images of its own and uses the engine, for test_engine_periodic.py.
 *
 * usage: periodic MODEL INPUT
 *
 * INPUT: atoms, model types, frames, periodic[3], skin; the type of each atom; for each frame lists_changed, whether
 * there is a cell, cell[3][3], positions. Prints for each frame the energy, the virial and how many edges there were,
 * then energy, force and virial of each atom. */
#include <stdio.h>
#include <stdlib.h>

#include "nequip_md_engine.h"

static double number(FILE* file) {
  double value;
  if (fscanf(file, "%lf", &value) != 1) {
    fprintf(stderr, "the input ends too early\n");
    exit(2);
  }
  return value;
}

int main(int argc, char** argv) {
  char message[1000];
  nequip_md_model* model;
  FILE* file = argc == 3 ? fopen(argv[2], "r") : NULL;
  int status = NEQUIP_MD_OK;

  if (!file || nequip_md_abi_version() != NEQUIP_MD_ABI_VERSION) return 2;
  if (nequip_md_load(argv[1], NULL, &model, message, sizeof message) != NEQUIP_MD_OK) {
    fprintf(stderr, "%s\n", message);
    return 1;
  }

  const int num_atoms = (int)number(file), num_types = (int)number(file), frames = (int)number(file);
  nequip_md_system system = {.struct_size = sizeof(nequip_md_system)};
  double cell[9];
  int *types = calloc(num_atoms, sizeof *types), *type_map = calloc(num_types, sizeof *type_map);
  double* positions = calloc(3 * num_atoms, sizeof *positions);

  for (int k = 0; k < 3; ++k) system.periodic[k] = (int)number(file);
  system.skin = number(file);
  for (int k = 0; k < num_atoms; ++k) types[k] = (int)number(file);
  for (int k = 0; k < num_types; ++k) type_map[k] = k;
  system.num_all = system.num_centres = num_atoms; /* all atoms are centres */
  system.positions = positions;
  system.types = types;
  system.num_caller_types = num_types;
  system.type_map = type_map;

  for (int frame = 0; frame < frames && status == NEQUIP_MD_OK; ++frame) {
    system.lists_changed = (int)number(file);
    system.cell = number(file) != 0 ? cell : NULL;
    for (int k = 0; k < 9; ++k) cell[k] = number(file);
    for (int k = 0; k < 3 * num_atoms; ++k) positions[k] = number(file);

    nequip_md_results results = {.struct_size = sizeof(nequip_md_results)};
    results.forces = calloc(3 * num_atoms, sizeof(double));
    results.atom_energies = calloc(num_atoms, sizeof(double));
    results.atom_virials = calloc(6 * num_atoms, sizeof(double));
    status = nequip_md_evaluate(model, &system, &results);
    if (status == NEQUIP_MD_OK) {
      printf("%.17g %lld", results.energy, results.num_edges);
      for (int k = 0; k < 6; ++k) printf(" %.17g", results.virial[k]);
      printf("\n");
      for (int atom = 0; atom < num_atoms; ++atom) {
        printf("%.17g", results.atom_energies[atom]);
        for (int k = 0; k < 3; ++k) printf(" %.17g", results.forces[3 * atom + k]);
        for (int k = 0; k < 6; ++k) printf(" %.17g", results.atom_virials[6 * atom + k]);
        printf("\n");
      }
    } else {
      fprintf(stderr, "%s (atom %d)\n", nequip_md_last_error(model), results.failed_atom);
    }
    free(results.forces);
    free(results.atom_energies);
    free(results.atom_virials);
  }
  free(types);
  free(type_map);
  free(positions);
  fclose(file);
  nequip_md_free(model);
  return status;
}
