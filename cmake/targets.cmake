# What bda's own executables have in common; nothing here reaches a user of the library.
function(bda_target_defaults target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Wconversion
                                           $<$<BOOL:${BDA_NATIVE}>:-march=native>)
  # GCC 12 warns of its own AVX-512 intrinsics (GCC bug 105593).
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(${target} PRIVATE -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
  target_link_libraries(${target} PRIVATE bda::bda bda::checkpoint)
endfunction()

function(bda_add_executable target)
  add_executable(${target} ${ARGN})
  set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
  bda_target_defaults(${target})
endfunction()

# nvcc's language level, which CMake 3.24 and 3.25 do not know for every version of nvcc.
function(bda_cuda_defaults target)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
endfunction()

# The kernels, instantiated once for all executables that launch them.
function(bda_add_cuda_kernels)
  if(NOT TARGET bda_cuda_kernels)
    file(GLOB kernels CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/cmake/cuda_kernels/*.cu")
    add_library(bda_cuda_kernels STATIC ${kernels})
    bda_cuda_defaults(bda_cuda_kernels)
    target_link_libraries(bda_cuda_kernels PUBLIC bda::cuda)
  endif()
endfunction()

# What takes longest to compile, compiled once for all executables that link it and include
# preparation.hpp, loading.hpp or conversion.hpp of this folder.
function(bda_add_instances)
  if(TARGET bda_instances)
    return()
  endif()
  set(units "${PROJECT_SOURCE_DIR}/cmake/conversion.cpp")
  foreach(type double float Eigen::half Eigen::bfloat16)
    string(REPLACE ":" "" name "${type}")
    foreach(what preparation loading)
      set(unit "${PROJECT_BINARY_DIR}/instances/${what}_${name}.cpp")
      configure_file("${PROJECT_SOURCE_DIR}/cmake/${what}.cpp.in" "${unit}" @ONLY)
      list(APPEND units "${unit}")
    endforeach()
  endforeach()
  add_library(bda_instances STATIC ${units})
  target_include_directories(bda_instances PUBLIC "${PROJECT_SOURCE_DIR}/cmake")
  bda_target_defaults(bda_instances)
endfunction()
