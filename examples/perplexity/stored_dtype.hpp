#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "bda/checkpoint/convert.hpp"
#include "bda/checkpoint/tensor_store.hpp"

namespace perplexity {

/// The type that most of a checkpoint's values are stored in. Throws where it is none of ours.
inline bda::DType stored_dtype(const bda::checkpoint::TensorStore& store) {
  std::map<std::string_view, std::int64_t> values_by_type;
  for (const auto& [name, tensor] : store.tensors())
    values_by_type[tensor->type.name] += tensor->size();
  std::string_view most;
  for (const auto& [type, count] : values_by_type)
    if (most.empty() || count > values_by_type[most]) most = type;
  for (const bda::DType t :
       {bda::DType::kF64, bda::DType::kF32, bda::DType::kF16, bda::DType::kBF16})
    if (bda::checkpoint::element_name(t) == most) return t;
  throw bda::Error(store.folder().string() + ": type of the weights", "F64, F32, F16 or BF16",
                   std::string(most));
}

}  // namespace perplexity
