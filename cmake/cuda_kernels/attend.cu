#include "bda/cuda/attend/attend.cuh"

BDA_INSTANTIATE_CUDA_ATTEND(__half);
BDA_INSTANTIATE_CUDA_ATTEND(__nv_bfloat16);
