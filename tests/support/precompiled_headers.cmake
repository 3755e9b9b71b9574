# Builds for tests alone read PyTorch's headers once, as these take most of the time. CMAKE_PROJECT_INCLUDE names this file.
if(CMAKE_UNITY_BUILD)
  return()  # a library is one source, which reads them once
endif()
cmake_language(DEFER CALL target_precompile_headers nequip_md_engine PRIVATE
  <ATen/Parallel.h> <ATen/TensorOperators.h> <ATen/core/Tensor.h> <ATen/ops/empty.h> <ATen/ops/from_blob.h> <ATen/ops/zeros.h>
  <torch/csrc/inductor/aoti_runner/model_container_runner.h>)
# sources that use little or nothing of PyTorch
cmake_language(DEFER CALL set_source_files_properties
  src/archive.cpp src/exchange.cpp src/gpu_absent.cpp src/memory.cpp src/metadata.cpp src/package.cpp src/periodic_images.cpp
  src/temporary_folder.cpp src/text_table.cpp
  TARGET_DIRECTORY nequip_md_engine PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
