#!/bin/sh
# Potential -> compiled model -> LAMMPS on two ranks -> conductivity and picture. Needs nequip-md[demo] and the plugin
# (nequip-md-lammps build).
set -e
cd "$(dirname "$0")"
mkdir -p out
python argon.py out/argon.pt2
OMP_NUM_THREADS=1 mpiexec -n 2 lmp -in in.argon -log out/log.argon -screen none "$@"
python plot.py
