# Build pair style nequip into LAMMPS, without touching LAMMPS' source tree.
#
#   cmake -S lammps/cmake -B build -D CMAKE_PROJECT_lammps_INCLUDE=.../cmake/NequIPMDInTree.cmake \
#         -D NEQUIP_MD_TORCH_ROOT=.../site-packages/torch
#
# `nequip-md-lammps intree` prints both options with their paths. CMake reads this file right after LAMMPS' project
# command. LAMMPS makes its list of styles from a global property, to which this file adds; what needs the target
# lammps is done at the end of LAMMPS' own file.
#
# Input:   NEQUIP_MD_TORCH_ROOT   folder of the Python package torch, or of an unpacked libtorch
if(CMAKE_VERSION VERSION_LESS 3.22)
  message(FATAL_ERROR "pair style nequip needs CMake 3.22 or newer, this is ${CMAKE_VERSION}")
endif()
get_filename_component(NEQUIP_MD_SOURCE_DIR "${CMAKE_CURRENT_LIST_DIR}/../pair_style" ABSOLUTE)
list(APPEND CMAKE_MODULE_PATH "${CMAKE_CURRENT_LIST_DIR}")
find_package(NequIPMDTorch REQUIRED)
add_subdirectory("${NEQUIP_MD_SOURCE_DIR}/engine" nequip_md_engine)

set_property(GLOBAL APPEND PROPERTY PAIR "${NEQUIP_MD_SOURCE_DIR}/lammps/pair_nequip_intree.h")

function(nequip_md_add_to_lammps)
  if(NOT TARGET lammps OR NOT TARGET lmp)
    message(FATAL_ERROR "NequIPMDInTree.cmake is for the cmake folder of a LAMMPS source tree; there is no target "
                        "lammps in ${CMAKE_CURRENT_SOURCE_DIR}")
  endif()
  set(_pair_sources pair_nequip.cpp pair_nequip_checks.cpp pair_nequip_comm.cpp pair_nequip_exchange.cpp pair_nequip_model.cpp
    pair_nequip_restart.cpp)
  list(TRANSFORM _pair_sources PREPEND "${NEQUIP_MD_SOURCE_DIR}/lammps/")
  target_sources(lammps PRIVATE ${_pair_sources})
  target_include_directories(lammps PRIVATE "${NEQUIP_MD_SOURCE_DIR}/lammps")
  target_link_libraries(lammps PRIVATE nequip_md_engine)
  if(NOT BUILD_MPI)
    set_property(SOURCE ${_pair_sources} TARGET_DIRECTORY lammps
      APPEND PROPERTY COMPILE_OPTIONS "-include;${NEQUIP_MD_SOURCE_DIR}/lammps/mpi_stubs_missing.h")
  endif()

  # a shared liblammps exports its dependencies, so the engine is in the same set
  install(TARGETS nequip_md_engine EXPORT LAMMPS_Targets
    LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" PUBLIC_HEADER DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  set_property(TARGET lammps lmp APPEND PROPERTY INSTALL_RPATH "${CMAKE_INSTALL_FULL_LIBDIR}")
  message(STATUS "Pair style nequip: engine with ${NEQUIP_MD_TORCH_ROOT}")
endfunction()
cmake_language(DEFER CALL nequip_md_add_to_lammps)
