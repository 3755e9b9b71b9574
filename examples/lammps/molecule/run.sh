#!/bin/sh
# sh run.sh MODEL FRAMES [TEMPERATURE [DEVICE]]: 100 ps of the molecule in FRAMES (extended XYZ), beginning with the first one.
#
#   nequip-md-train ../../training/3bpa.yaml
#   sh run.sh ../../training/3bpa/best.nqmd ../../training/test_300K.extxyz 300 cuda
#
# Needs nequip-md[demo] and the plugin (nequip-md-lammps build). STEPS=2000 makes it shorter.
set -e
model=$(realpath "$1")
frames=$(realpath "$2")
cd "$(dirname "$0")"
mkdir -p out
nequip-md-export "$model" -o out/molecule.pt2 --device "${4:-cpu}"
python molecule.py prepare "$frames"
lmp -in in.molecule -screen none -var temperature "${3:-300}" -var steps "${STEPS:-200000}"
python molecule.py draw "$frames" "${3:-300}"
