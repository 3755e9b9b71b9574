"""``nequip-md-bench``: how long one step takes on this machine, alone, in LAMMPS, and beside upstream's package."""
