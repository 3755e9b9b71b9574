# Find the headers of a LAMMPS installation or source tree, and its release.
#
# A plugin takes every symbol from the program that loads it, so that neither LAMMPS nor MPI is linked.
#
# Input:   NEQUIP_MD_LAMMPS_ROOT       folder of the Python package lammps, an installation prefix, or a source tree
#          NEQUIP_MD_MPI_INCLUDE_DIR   folder of the mpi.h of the MPI that LAMMPS runs with
#          NEQUIP_MD_LAMMPS_RELEASE    release as a number, e.g. 20250722; found from the headers if not given
#          NEQUIP_MD_LAMMPS_INTEGERS   LAMMPS_SMALLBIG (default) or LAMMPS_BIGBIG, as LAMMPS was built
# Output:  NequIPMD::LAMMPS            imported target with NEQUIP_MD_LAMMPS_RELEASE defined for the compiler
set(NEQUIP_MD_LAMMPS_ROOT "" CACHE PATH "LAMMPS package folder, prefix or source tree")
set(NEQUIP_MD_LAMMPS_RELEASE "" CACHE STRING "LAMMPS release as a number, e.g. 20250722")
set(NEQUIP_MD_LAMMPS_INTEGERS "LAMMPS_SMALLBIG" CACHE STRING "integer sizes that LAMMPS was built with")

find_path(NEQUIP_MD_LAMMPS_INCLUDE_DIR pair.h
  HINTS "${NEQUIP_MD_LAMMPS_ROOT}" PATH_SUFFIXES include/lammps src NO_DEFAULT_PATH)
find_path(NEQUIP_MD_MPI_INCLUDE_DIR mpi.h HINTS "${NEQUIP_MD_LAMMPS_ROOT}" PATH_SUFFIXES include src/STUBS)
mark_as_advanced(NEQUIP_MD_LAMMPS_INCLUDE_DIR NEQUIP_MD_MPI_INCLUDE_DIR)

if(NOT NEQUIP_MD_LAMMPS_RELEASE AND NEQUIP_MD_LAMMPS_INCLUDE_DIR)
  set(_version_header "${NEQUIP_MD_LAMMPS_INCLUDE_DIR}/version.h")
  set(_version_config "${NEQUIP_MD_LAMMPS_ROOT}/cmake/LAMMPS/LAMMPSConfigVersion.cmake")
  if(NOT EXISTS "${_version_config}")
    set(_version_config "${NEQUIP_MD_LAMMPS_ROOT}/lib/cmake/LAMMPS/LAMMPSConfigVersion.cmake")
  endif()
  if(EXISTS "${_version_header}")  # e.g. "22 Jul 2025"
    file(STRINGS "${_version_header}" _line REGEX "LAMMPS_VERSION")
    if(_line MATCHES "\"([0-9]+) ([A-Z][a-z][a-z])[a-z]* ([0-9]+)\"")
      set(_day "${CMAKE_MATCH_1}")
      set(_year "${CMAKE_MATCH_3}")
      string(FIND "JanFebMarAprMayJunJulAugSepOctNovDec" "${CMAKE_MATCH_2}" _month)
      math(EXPR NEQUIP_MD_LAMMPS_RELEASE "${_year} * 10000 + (${_month} / 3 + 1) * 100 + ${_day}")
    endif()
  elseif(EXISTS "${_version_config}")  # e.g. "2025.7.22.4", or "20240829" before 2025
    file(STRINGS "${_version_config}" _line REGEX "set\\(PACKAGE_VERSION ")
    if(_line MATCHES "\"([0-9]+)\\.([0-9]+)\\.([0-9]+)")
      math(EXPR NEQUIP_MD_LAMMPS_RELEASE "${CMAKE_MATCH_1} * 10000 + ${CMAKE_MATCH_2} * 100 + ${CMAKE_MATCH_3}")
    elseif(_line MATCHES "\"([0-9]+)\"")
      set(NEQUIP_MD_LAMMPS_RELEASE "${CMAKE_MATCH_1}")
    endif()
  endif()
endif()

# Wheels for manylinux2014 have C++'s strings from before C++11, and a plugin must have the same. The engine need not:
# only C passes between the two.
find_file(NEQUIP_MD_LAMMPS_LIBRARY liblammps.so HINTS "${NEQUIP_MD_LAMMPS_ROOT}" PATH_SUFFIXES lib lib64 NO_DEFAULT_PATH)
mark_as_advanced(NEQUIP_MD_LAMMPS_LIBRARY)
set(_abi "")
if(NEQUIP_MD_LAMMPS_LIBRARY)
  file(STRINGS "${NEQUIP_MD_LAMMPS_LIBRARY}" _error_one LIMIT_COUNT 1 REGEX "^_ZN9LAMMPS_NS5Error3oneERKSs")
  if(_error_one)
    set(_abi _GLIBCXX_USE_CXX11_ABI=0)
  endif()
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NequIPMDLAMMPS
  REQUIRED_VARS NEQUIP_MD_LAMMPS_INCLUDE_DIR NEQUIP_MD_MPI_INCLUDE_DIR NEQUIP_MD_LAMMPS_RELEASE
  REASON_FAILURE_MESSAGE "Set NEQUIP_MD_LAMMPS_ROOT, NEQUIP_MD_MPI_INCLUDE_DIR and NEQUIP_MD_LAMMPS_RELEASE")

if(NequIPMDLAMMPS_FOUND AND NOT TARGET NequIPMD::LAMMPS)
  add_library(NequIPMD::LAMMPS INTERFACE IMPORTED)
  target_include_directories(NequIPMD::LAMMPS SYSTEM INTERFACE
    "${NEQUIP_MD_LAMMPS_INCLUDE_DIR}" "${NEQUIP_MD_MPI_INCLUDE_DIR}")
  target_compile_definitions(NequIPMD::LAMMPS INTERFACE
    ${NEQUIP_MD_LAMMPS_INTEGERS} ${_abi} NEQUIP_MD_LAMMPS_RELEASE=${NEQUIP_MD_LAMMPS_RELEASE})
endif()
