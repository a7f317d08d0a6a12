#pragma once

/// The K/V projection on NVIDIA GPUs, keys and values as attention kernels read them, the products
/// of absorbed decoding and a built-in attention step, for plain C++ files. The kernels are in
/// cuda.cuh, for one .cu file of the program.
#include "bda/cuda/absorbed/absorbed.hpp"
#include "bda/cuda/absorbed/arguments.hpp"
#include "bda/cuda/absorbed/config.hpp"
#include "bda/cuda/attend/arguments.hpp"
#include "bda/cuda/attend/attend.hpp"
#include "bda/cuda/attend/config.hpp"
#include "bda/cuda/attention_ready/arguments.hpp"
#include "bda/cuda/attention_ready/attention_ready.hpp"
#include "bda/cuda/attention_ready/config.hpp"
#include "bda/cuda/kv_layout/layout.hpp"
#include "bda/cuda/layer/layer.hpp"
#include "bda/cuda/projection/arguments.hpp"
#include "bda/cuda/projection/config.hpp"
#include "bda/cuda/projection/packing.hpp"
#include "bda/cuda/projection/projection.hpp"
