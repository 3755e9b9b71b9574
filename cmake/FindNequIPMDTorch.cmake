# Find the libtorch of an installed torch package.
#
# torch's own TorchConfig.cmake asks for the CUDA toolkit when torch was built with CUDA. The engine needs two of CUDA's
# headers only, which come along with torch's dependencies.
#
# Input:   NEQUIP_MD_TORCH_ROOT         folder of the Python package torch, or of an unpacked libtorch
# Output:  NequIPMD::Torch              imported target
#          NEQUIP_MD_TORCH_LIBRARY_DIR  folder of libtorch.so
#          NequIPMD::TorchCUDA          imported target, and
#          NEQUIP_MD_CUDA_INCLUDE_DIR   folder of cuda.h; both only where torch was built with CUDA and the headers are there
set(NEQUIP_MD_TORCH_ROOT "" CACHE PATH "folder of the Python package torch")

find_path(NEQUIP_MD_TORCH_INCLUDE_DIR ATen/ATen.h
  HINTS "${NEQUIP_MD_TORCH_ROOT}/include" NO_DEFAULT_PATH)
find_library(NEQUIP_MD_TORCH_LIBRARY torch HINTS "${NEQUIP_MD_TORCH_ROOT}/lib" NO_DEFAULT_PATH)
find_library(NEQUIP_MD_TORCH_CPU_LIBRARY torch_cpu HINTS "${NEQUIP_MD_TORCH_ROOT}/lib" NO_DEFAULT_PATH)
find_library(NEQUIP_MD_C10_LIBRARY c10 HINTS "${NEQUIP_MD_TORCH_ROOT}/lib" NO_DEFAULT_PATH)
mark_as_advanced(NEQUIP_MD_TORCH_INCLUDE_DIR NEQUIP_MD_TORCH_LIBRARY NEQUIP_MD_TORCH_CPU_LIBRARY NEQUIP_MD_C10_LIBRARY)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NequIPMDTorch
  REQUIRED_VARS NEQUIP_MD_TORCH_INCLUDE_DIR NEQUIP_MD_TORCH_LIBRARY NEQUIP_MD_TORCH_CPU_LIBRARY NEQUIP_MD_C10_LIBRARY
  REASON_FAILURE_MESSAGE "Set NEQUIP_MD_TORCH_ROOT to the folder of the Python package torch")

if(NequIPMDTorch_FOUND AND NOT TARGET NequIPMD::Torch)
  get_filename_component(NEQUIP_MD_TORCH_LIBRARY_DIR "${NEQUIP_MD_TORCH_LIBRARY}" DIRECTORY)

  # The C++ library ABI that torch was compiled with stands in its configuration file.
  set(_torch_config "${NEQUIP_MD_TORCH_ROOT}/share/cmake/Torch/TorchConfig.cmake")
  set(_torch_cxx11_abi 1)
  if(EXISTS "${_torch_config}")
    file(STRINGS "${_torch_config}" _torch_abi_lines REGEX "_GLIBCXX_USE_CXX11_ABI=[01]")
    if(_torch_abi_lines MATCHES "_GLIBCXX_USE_CXX11_ABI=([01])")
      set(_torch_cxx11_abi "${CMAKE_MATCH_1}")
    endif()
  endif()

  add_library(NequIPMD::Torch INTERFACE IMPORTED)
  target_include_directories(NequIPMD::Torch SYSTEM INTERFACE
    "${NEQUIP_MD_TORCH_INCLUDE_DIR}" "${NEQUIP_MD_TORCH_INCLUDE_DIR}/torch/csrc/api/include")
  target_compile_definitions(NequIPMD::Torch INTERFACE _GLIBCXX_USE_CXX11_ABI=${_torch_cxx11_abi})
  # libtorch.so has no symbols of its own but pulls in libtorch_cuda.so where there is one.
  target_link_libraries(NequIPMD::Torch INTERFACE
    -Wl,--no-as-needed
    "${NEQUIP_MD_TORCH_LIBRARY}" "${NEQUIP_MD_TORCH_CPU_LIBRARY}" "${NEQUIP_MD_C10_LIBRARY}"
    -Wl,--as-needed)
endif()

find_library(NEQUIP_MD_TORCH_CUDA_LIBRARY torch_cuda HINTS "${NEQUIP_MD_TORCH_ROOT}/lib" NO_DEFAULT_PATH)
find_library(NEQUIP_MD_C10_CUDA_LIBRARY c10_cuda HINTS "${NEQUIP_MD_TORCH_ROOT}/lib" NO_DEFAULT_PATH)
mark_as_advanced(NEQUIP_MD_TORCH_CUDA_LIBRARY NEQUIP_MD_C10_CUDA_LIBRARY)
if(NequIPMDTorch_FOUND AND NEQUIP_MD_TORCH_CUDA_LIBRARY AND NEQUIP_MD_C10_CUDA_LIBRARY)
  file(GLOB _nvidia "${NEQUIP_MD_TORCH_ROOT}/../nvidia/cu*/include" "${NEQUIP_MD_TORCH_ROOT}/../nvidia/cuda_runtime/include")
  find_path(NEQUIP_MD_CUDA_INCLUDE_DIR NAMES cuda_runtime_api.h
    HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda ${_nvidia} "${NEQUIP_MD_TORCH_ROOT}/../triton/backends/nvidia"
    PATH_SUFFIXES include)
  if(NEQUIP_MD_CUDA_INCLUDE_DIR AND NOT TARGET NequIPMD::TorchCUDA)
    add_library(NequIPMD::TorchCUDA INTERFACE IMPORTED)
    target_link_libraries(NequIPMD::TorchCUDA INTERFACE "${NEQUIP_MD_TORCH_CUDA_LIBRARY}" "${NEQUIP_MD_C10_CUDA_LIBRARY}")
  endif()
endif()
