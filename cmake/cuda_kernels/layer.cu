#include "bda/cuda/layer/layer.cuh"

BDA_INSTANTIATE_CUDA_LAYER(__half);
BDA_INSTANTIATE_CUDA_LAYER(__nv_bfloat16);
