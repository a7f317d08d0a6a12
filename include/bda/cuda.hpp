#pragma once

/// The K/V projection on NVIDIA GPUs, for plain C++ files. The kernels are in cuda.cuh, for one .cu
/// file of the program.
#include "bda/cuda/projection/arguments.hpp"
#include "bda/cuda/projection/config.hpp"
#include "bda/cuda/projection/packing.hpp"
#include "bda/cuda/projection/projection.hpp"
