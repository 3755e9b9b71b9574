#!/bin/sh
# Checkpoint -> compiled model -> LAMMPS on two ranks -> picture. Needs nequip-md[demo] and the plugin (nequip-md-lammps build).
set -e
cd "$(dirname "$0")"
mkdir -p out
nequip-md-export water.nqmd -o out/water.pt2
OMP_NUM_THREADS=1 mpiexec -n 2 lmp -in in.water -screen none
python plot.py
