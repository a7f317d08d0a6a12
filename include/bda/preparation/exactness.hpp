#pragma once

#include <optional>
#include <string>

#include "bda/model/attention_weights.hpp"

namespace bda::inline v0 {

/// Why the QK side of a layer cannot be decomposed exactly; nothing where it can.
template <class T>
std::optional<std::string> why_qk_is_inexact(const AttentionWeights<T>& w) {
  if (w.config.qk_dim == 0)
    return "a rotary embedding turns all " + std::to_string(w.config.rope_dim) +
           " channels of each query and key (qk_dim = 0), and a rotation does not commute with the "
           "change of basis; decompose the VO side alone, which is exact";
  if (!w.q_head_norm.empty() || !w.k_head_norm.empty())
    return "a norm follows the query or key projection, and it does not commute with the change of "
           "basis; decompose the VO side alone, which is exact";
  if (w.config.qk_dim > w.config.kv_dim)
    return "a head has " + std::to_string(w.config.qk_dim) +
           " channels without rotation but only " + std::to_string(w.config.kv_dim) +
           " inputs to choose a basis from";
  return std::nullopt;
}

/// Why the VO side cannot be decomposed exactly; nothing where it can.
template <class T>
std::optional<std::string> why_vo_is_inexact(const AttentionWeights<T>& w) {
  if (w.config.v_dim > w.config.kv_dim)
    return "a value head has " + std::to_string(w.config.v_dim) + " channels but only " +
           std::to_string(w.config.kv_dim) + " inputs to choose a basis from";
  return std::nullopt;
}

}  // namespace bda::inline v0
