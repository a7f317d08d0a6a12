# Each dependency comes from the system where it is installed (cmake/install_dependencies does that
# on Debian and Ubuntu), else from its pinned source.
include(FetchContent)
find_package(Threads REQUIRED)

# A header-only library from source becomes an imported target: no rules of its own are run, and
# bda's export names it as a dependency just as it does the system's.
function(bda_fetch_headers target name include_dir)
  FetchContent_MakeAvailable(${name})
  add_library(${target} INTERFACE IMPORTED GLOBAL)
  target_include_directories(${target} INTERFACE "${${name}_SOURCE_DIR}/${include_dir}")
endfunction()

if(NOT TARGET Eigen3::Eigen)
  find_package(Eigen3 3.4 QUIET NO_MODULE GLOBAL)
endif()
if(NOT TARGET Eigen3::Eigen)
  message(STATUS "bda: Eigen not found, fetching it")
  FetchContent_Declare(eigen GIT_REPOSITORY https://gitlab.com/libeigen/eigen.git GIT_TAG 3.4.0
                             GIT_SHALLOW TRUE SOURCE_SUBDIR headers-only)
  bda_fetch_headers(Eigen3::Eigen eigen .)
endif()

if(BDA_CHECKPOINT AND NOT TARGET nlohmann_json::nlohmann_json)
  find_package(nlohmann_json 3.10 QUIET GLOBAL)
endif()
if(BDA_CHECKPOINT AND NOT TARGET nlohmann_json::nlohmann_json)
  message(STATUS "bda: nlohmann_json not found, fetching it")
  FetchContent_Declare(json GIT_REPOSITORY https://github.com/nlohmann/json.git GIT_TAG v3.11.3
                            GIT_SHALLOW TRUE SOURCE_SUBDIR headers-only)
  bda_fetch_headers(nlohmann_json::nlohmann_json json single_include)
endif()

if(BDA_BUILD_TESTS AND NOT TARGET Catch2::Catch2WithMain)
  find_package(Catch2 3 QUIET GLOBAL)
  if(NOT Catch2_FOUND)
    message(STATUS "bda: Catch2 v3 not found, fetching it")
    FetchContent_Declare(catch2 GIT_REPOSITORY https://github.com/catchorg/Catch2.git
                                GIT_TAG v3.7.1 GIT_SHALLOW TRUE SYSTEM)
    FetchContent_MakeAvailable(catch2)
    list(APPEND CMAKE_MODULE_PATH "${catch2_SOURCE_DIR}/extras")
  endif()
endif()

if(BDA_BUILD_BENCHMARKS AND NOT TARGET benchmark::benchmark)
  find_package(benchmark QUIET GLOBAL)
  if(NOT benchmark_FOUND)
    message(STATUS "bda: Google Benchmark not found, fetching it")
    set(BENCHMARK_ENABLE_TESTING OFF)
    set(BENCHMARK_ENABLE_INSTALL OFF)
    FetchContent_Declare(benchmark GIT_REPOSITORY https://github.com/google/benchmark.git
                                   GIT_TAG v1.8.3 GIT_SHALLOW TRUE SYSTEM)
    FetchContent_MakeAvailable(benchmark)
  endif()
endif()
