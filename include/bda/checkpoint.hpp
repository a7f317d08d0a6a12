#pragma once

/// Reading trained models: safetensors, config.json, and an adapter per model family; and turning
/// them into their basis-decomposed form.
#include "bda/checkpoint/config.hpp"
#include "bda/checkpoint/convert.hpp"
#include "bda/checkpoint/convert_checkpoint.hpp"
#include "bda/checkpoint/load.hpp"
#include "bda/checkpoint/plan.hpp"
#include "bda/checkpoint/safetensors.hpp"
#include "bda/checkpoint/safetensors_writer.hpp"
#include "bda/checkpoint/tensor_store.hpp"
#include "bda/checkpoint/transformer.hpp"
