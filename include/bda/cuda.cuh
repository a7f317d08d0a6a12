#pragma once

/// The kernels and the bodies of the entry points that cuda.hpp declares.
#include "bda/cuda.hpp"
#include "bda/cuda/absorbed/absorbed.cuh"
#include "bda/cuda/attend/attend.cuh"
#include "bda/cuda/attention_ready/attention_ready.cuh"
#include "bda/cuda/layer/layer.cuh"
#include "bda/cuda/projection/projection.cuh"
