# Builds for tests alone make one source of each library, as PyTorch's headers take most of the time: CMAKE_PROJECT_INCLUDE names
# this file. Sources in CHANGED_SOURCES stay apart, so that a change of one compiles no other, and share precompiled headers.
set(CMAKE_UNITY_BUILD ON)
set(CMAKE_UNITY_BUILD_BATCH_SIZE 0)
if(NOT CHANGED_SOURCES)
  return()  # each library reads the headers once as it is
endif()
cmake_language(DEFER CALL set_source_files_properties ${CHANGED_SOURCES}
  TARGET_DIRECTORY nequip_md_engine nequip_md_plugin PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
cmake_language(DEFER CALL target_precompile_headers nequip_md_engine PRIVATE
  <ATen/Parallel.h> <ATen/TensorOperators.h> <ATen/core/Tensor.h> <ATen/ops/empty.h> <ATen/ops/from_blob.h> <ATen/ops/zeros.h>
  <torch/csrc/inductor/aoti_runner/model_container_runner.h>)
