#include "bda/cuda/attention_ready/attention_ready.cuh"

BDA_INSTANTIATE_CUDA_ATTENTION_READY(__half);
BDA_INSTANTIATE_CUDA_ATTENTION_READY(__nv_bfloat16);
BDA_INSTANTIATE_CUDA_ATTENTION_READY(float);
