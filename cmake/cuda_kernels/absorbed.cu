#include "bda/cuda/absorbed/absorbed.cuh"

BDA_INSTANTIATE_CUDA_ABSORBED(__half);
BDA_INSTANTIATE_CUDA_ABSORBED(__nv_bfloat16);
BDA_INSTANTIATE_CUDA_ABSORBED(float);
