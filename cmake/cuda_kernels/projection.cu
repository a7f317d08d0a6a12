#include "bda/cuda/projection/projection.cuh"

BDA_INSTANTIATE_CUDA_PROJECTION(__half);
BDA_INSTANTIATE_CUDA_PROJECTION(__nv_bfloat16);
BDA_INSTANTIATE_CUDA_PROJECTION(float);
