#pragma once

/// BDAttention on NVIDIA GPUs: CudaBackend over the kernels of cuda.hpp and cublasLt, for plain C++
/// files. One .cu file of the program holds the kernels: see cuda.cuh.
#include "bda/attention/bd_attention.hpp"
#include "bda/cuda_backend/backend.hpp"
#include "bda/cuda_backend/casting.hpp"
#include "bda/cuda_backend/device_array.hpp"
#include "bda/cuda_backend/kv_cache.hpp"
#include "bda/cuda_backend/kv_plan.hpp"
#include "bda/cuda_backend/product.hpp"
