#!/usr/bin/env bash
# What including and using the library costs a compiler: CPU seconds (user) and bytes of the result,
# beside the budget of each.  bench/compile_time.sh [--cuda], with CXX, NVCC and EIGEN to choose.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cxx=(${CXX:-g++} -std=c++20 "-I$root/include" -isystem "${EIGEN:-/usr/include/eigen3}" -march=native)
nvcc=(${NVCC:-nvcc} -std=c++20 -O3 -DNDEBUG -arch=sm_90a "-I$root/include")

# measure NAME BUDGET_SECONDS COMMAND...: the command writes `out`.
measure() {
  local name=$1 budget=$2 seconds
  shift 2
  TIMEFORMAT=%U
  seconds=$({ time "$@" -o out >/dev/null 2>errors; } 2>&1) || { cat errors; exit 1; }
  printf '| %s | %.1f | %s | %.0f |\n' "$name" "$seconds" "$budget" "$(($(stat -c %s out) / 1000))"
}

echo '#include <Eigen/Core>' >eigen.cpp
echo '#include <bda/bda.hpp>' >include.cpp
cat >use.hpp <<'END'
#include <bda/attention/bd_attention.hpp>
#include <bda/cpu/backend.hpp>
using Attention = bda::BDAttention<bda::CpuBackend<float>>;
inline bool attend(const Attention& a, const Attention::Arguments& args, Attention::Cache& cache,
                   std::span<std::byte> workspace) {
  return a.run(args, cache, workspace).ok();
}
END
printf '#include "use.hpp"\nauto* used = &attend;\n' >use.cpp
printf '#include "use.hpp"\nextern template class bda::CpuBackend<float>;\nauto* used = &attend;\n' >extern.cpp
printf '#include "use.hpp"\ntemplate class bda::CpuBackend<float>;\n' >instance.cpp

echo '| what | CPU s | budget, s | kB |'
echo '| --- | ---: | ---: | ---: |'
measure 'including Eigen/Core alone, for comparison, -O2' - "${cxx[@]}" -O2 -c eigen.cpp
measure 'including bda/bda.hpp, -O2' 4 "${cxx[@]}" -O2 -c include.cpp
measure 'running a layer, CpuBackend<float>, -O2' 20 "${cxx[@]}" -O2 -c use.cpp
measure 'the same where another file instantiates the backend' 10 "${cxx[@]}" -O2 -c extern.cpp
measure 'that other file' 20 "${cxx[@]}" -O2 -c instance.cpp
measure 'examples/quickstart, preparation included, -O2, the program' 75 "${cxx[@]}" -O2 "$root/examples/quickstart/main.cpp"
[[ ${1-} == --cuda ]] || exit 0
cat >projection.cu <<'END'
#include <bda/cuda/projection/projection.cuh>
#include <cuda_bf16.h>
BDA_INSTANTIATE_CUDA_PROJECTION(__nv_bfloat16);
END
cat >host.cpp <<'END'
#include <bda/cuda.hpp>
END
measure 'including bda/cuda.hpp in a .cpp, -O2' 3 "${cxx[@]}" -isystem "${CUDA_INCLUDE:-/usr/local/cuda/include}" -O2 -c host.cpp
measure 'the projection for one type, sm_90a' 40 "${nvcc[@]}" -c projection.cu
# every_kernel -o out
every_kernel() {
  local source
  for source in "$root"/cmake/cuda_kernels/*.cu; do
    "${nvcc[@]}" -c "$source" -o "$(basename "$source").o"
  done
  cat ./*.cu.o >"$2"
}
measure 'all kernels for all types (cmake/cuda_kernels), sm_90a' 150 every_kernel
