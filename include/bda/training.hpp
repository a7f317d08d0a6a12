#pragma once

/// Training attention layers, plain or basis-decomposed: forward and backward on the CPU.
#include "bda/training/attention.hpp"
#include "bda/training/projection.hpp"
#include "bda/training/rows.hpp"
#include "bda/training/softmax.hpp"
