# Install the engine with a CMake package, so that another project finds it by find_package(NequIPMDEngine).
#
# Apart from engine/CMakeLists.txt, since a LAMMPS that the engine is built into has folders of its own. The version of
# the package is that of the C interface.
set(_folder lib/cmake/NequIPMDEngine)
install(TARGETS nequip_md_engine EXPORT NequIPMDEngine LIBRARY DESTINATION . PUBLIC_HEADER DESTINATION include)
install(EXPORT NequIPMDEngine NAMESPACE NequIPMD:: FILE NequIPMDEngineConfig.cmake DESTINATION "${_folder}")

file(STRINGS "${CMAKE_CURRENT_LIST_DIR}/include/nequip_md_engine.h" _line REGEX "define NEQUIP_MD_ABI_VERSION")
string(REGEX MATCH "[0-9]+" _abi "${_line}")
include(CMakePackageConfigHelpers)
write_basic_package_version_file(NequIPMDEngineConfigVersion.cmake VERSION "${_abi}" COMPATIBILITY ExactVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/NequIPMDEngineConfigVersion.cmake" DESTINATION "${_folder}")
