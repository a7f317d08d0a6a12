// The CUDA headers before the macros that would make them show their device code.
#include "bda/cuda/ptx/wgmma.cuh"
#include "runtime.hpp"

#define __CUDA_ARCH__ 900
#define __CUDA_ARCH_FEAT_SM90_ALL 1
// Shared memory that a kernel declares itself is one for all threads, but what it declares extern
// is the emulated multiprocessor's.
#undef __shared__
#define __shared__ static
#include "bda/cuda/absorbed/kernel_simt.cuh"
#include "bda/cuda/attend/kernel_rows.cuh"
#include "bda/cuda/projection/kernel_simt.cuh"
#undef __shared__
#define __shared__
#include "bda/cuda/absorbed/absorbed.cuh"
#include "bda/cuda/attend/attend.cuh"
#include "bda/cuda/attention_ready/attention_ready.cuh"
#include "bda/cuda/projection/projection.cuh"

BDA_INSTANTIATE_CUDA_PROJECTION(float);
BDA_INSTANTIATE_CUDA_PROJECTION(__half);
BDA_INSTANTIATE_CUDA_PROJECTION(__nv_bfloat16);
BDA_INSTANTIATE_CUDA_ABSORBED(float);
BDA_INSTANTIATE_CUDA_ABSORBED(__half);
BDA_INSTANTIATE_CUDA_ABSORBED(__nv_bfloat16);
BDA_INSTANTIATE_CUDA_ATTENTION_READY(__half);
BDA_INSTANTIATE_CUDA_ATTENTION_READY(__nv_bfloat16);
BDA_INSTANTIATE_CUDA_ATTEND(__half);
BDA_INSTANTIATE_CUDA_ATTEND(__nv_bfloat16);
