cmake_minimum_required(VERSION 3.24)

# cmake -DINCLUDE_DIR=... -P check.cmake: fails on an include that is not listed here, and on a header
# that no umbrella reaches.
#
# A folder of include/bda may include itself, version.hpp, the standard library, and the folders
# and libraries of its line. The umbrellas at the top may include everything and are included by
# nothing. A folder without a line may not exist.
set(allowed_core "")
set(allowed_linalg core Eigen)
set(allowed_model core)
set(allowed_decomposition linalg core Eigen)
set(allowed_preparation decomposition model linalg core Eigen)
set(allowed_checkpoint preparation decomposition model linalg core Eigen nlohmann posix)
set(allowed_attention model core)
set(allowed_conv_basis core Eigen unsupported)
set(allowed_cpu attention model linalg core Eigen)
set(allowed_linear cpu decomposition linalg core Eigen)
set(allowed_training attention model linalg core Eigen)
# Device code: neither linalg nor Eigen, whatever else is added here.
set(allowed_cuda attention model core toolkit)
set(allowed_cuda_backend cuda attention model core toolkit)

cmake_path(ABSOLUTE_PATH INCLUDE_DIR)
file(GLOB_RECURSE headers RELATIVE "${INCLUDE_DIR}/bda" "${INCLUDE_DIR}/bda/*.hpp"
     "${INCLUDE_DIR}/bda/*.cuh")
if(NOT headers)
  message(FATAL_ERROR "no headers under ${INCLUDE_DIR}/bda")
endif()
set(violations "")
foreach(header IN LISTS headers)
  string(REGEX MATCH "^[^/]+/" folder "${header}")
  string(REPLACE "/" "" folder "${folder}")
  if(NOT folder STREQUAL "" AND NOT DEFINED allowed_${folder})
    list(APPEND violations "${header}: folder ${folder} has no line in check.cmake")
    continue()
  endif()
  file(STRINGS "${INCLUDE_DIR}/bda/${header}" includes REGEX "^[ \t]*#[ \t]*include")
  foreach(include IN LISTS includes)
    string(REGEX REPLACE ".*include[ \t]*[<\"]([^>\"]*)[>\"].*" "\\1" path "${include}")
    if(path MATCHES "^bda/(.*)")
      list(APPEND "included_by_${header}" ${CMAKE_MATCH_1})
    endif()
    if(path MATCHES "^bda/([a-z_]+)/")
      set(to ${CMAKE_MATCH_1})
    elseif(path STREQUAL "bda/version.hpp" OR path MATCHES "^[a-z_]+$")  # <vector>
      continue()
    elseif(path MATCHES "^(bda/[a-z_]+\\.hpp)$")
      set(to ${CMAKE_MATCH_1})
    elseif(path MATCHES "^cu(da|blas)[A-Za-z0-9_]*\\.h$")  # <cuda_fp16.h>
      set(to toolkit)
    elseif(path MATCHES "^[a-z_/]+\\.h$")  # <sys/mman.h>
      set(to posix)
    elseif(path MATCHES "^([A-Za-z_]+)/")  # <Eigen/Core>
      set(to ${CMAKE_MATCH_1})
    else()
      set(to ${path})
    endif()
    if(NOT folder STREQUAL "" AND NOT to STREQUAL folder AND NOT to IN_LIST allowed_${folder})
      list(APPEND violations "${header}: ${folder} -> ${to} (${path})")
    endif()
  endforeach()
endforeach()

# Including the umbrellas includes every header.
set(reached bda.hpp checkpoint.hpp conv_basis.hpp linear.hpp training.hpp cuda.hpp cuda.cuh
    cuda_backend.hpp)
set(next ${reached})
while(next)
  list(POP_FRONT next header)
  foreach(included IN LISTS "included_by_${header}")
    if(NOT included IN_LIST reached)
      list(APPEND reached ${included})
      list(APPEND next ${included})
    endif()
  endforeach()
endwhile()
foreach(header IN LISTS headers)
  if(NOT header IN_LIST reached)
    list(APPEND violations "${header}: in no umbrella")
  endif()
endforeach()

if(violations)
  list(JOIN violations "\n  " text)
  message(FATAL_ERROR "include rules broken:\n  ${text}")
endif()
