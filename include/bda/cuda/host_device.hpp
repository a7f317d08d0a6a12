#pragma once

/// For arithmetic that is the same on the host and, where a CUDA compiler reads it, on the device.
#if defined(__CUDACC__)
#define BDA_HOST_DEVICE __host__ __device__
#else
#define BDA_HOST_DEVICE
#endif
