# The program of every way in, once bda is there: C++ alone, or with CUDA C++ and a plain .cpp that
# calls the kernel.
include("${CMAKE_CURRENT_LIST_DIR}/expect_no_flags.cmake")
set(sources "${CMAKE_CURRENT_LIST_DIR}")
if(CONSUMER_CUDA)
  enable_language(CUDA)
  add_executable(consumer "${sources}/cuda.cpp" "${sources}/cuda_kernel.cu")
  target_compile_options(consumer PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
  target_link_libraries(consumer PRIVATE bda::cuda)
else()
  add_executable(consumer "${sources}/cpu.cpp")
  target_link_libraries(consumer PRIVATE bda::bda bda::checkpoint)
endif()
