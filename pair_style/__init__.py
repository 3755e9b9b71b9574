"""C++ sources of the engine and of the LAMMPS plugin; :mod:`nequip_md.lammps` compiles them."""
