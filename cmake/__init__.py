"""CMake find modules for the C++ sources; :mod:`nequip_md.lammps` uses them."""
