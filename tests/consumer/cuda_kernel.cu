// The one file that compiles kernels: of what the program calls.
#include <cuda_fp16.h>

#include <bda/cuda/layer/layer.cuh>

template bda::Status bda::cuda::rms_norm<__half>(const bda::TensorView<const __half, 4>&,
                                                 const __half*, float,
                                                 const bda::TensorView<__half, 4>&, cudaStream_t);
