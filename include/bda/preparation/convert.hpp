#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "bda/decomposition/rounding.hpp"
#include "bda/linalg/eigen.hpp"
#include "bda/model/attention_weights.hpp"

namespace bda::inline v0 {

/// `values` in another storage type, each to nearest; throws where one does not fit, naming it.
template <class T, class U>
std::vector<T> convert(const std::vector<U>& values, std::string_view name) {
  if constexpr (std::is_same_v<T, U>) {
    return values;
  } else {
    std::vector<T> out(values.size());
    detail::store<T>(values.data(), static_cast<Eigen::Index>(values.size()), out.data(), name);
    return out;
  }
}

template <class T, class U>
Matrix<T> convert(const Matrix<U>& m, std::string_view name) {
  Matrix<T> out;
  out.rows = m.rows;
  out.cols = m.cols;
  out.values = convert<T>(m.values, name);
  return out;
}

template <class T, class U>
KvProjection<T> convert(const KvProjection<U>& p, std::string_view name) {
  return {convert<T>(p.weight, std::string(name) + ".weight"),
          convert<T>(p.bias, std::string(name) + ".bias"), p.basis};
}

/// A layer in another storage type, plainly rounded: what the original is when stored in T.
template <class T, class U>
AttentionWeights<T> convert(const AttentionWeights<U>& w) {
  AttentionWeights<T> out;
  out.config = w.config;
  out.q = convert<T>(w.q, "q");
  out.q_bias = convert<T>(w.q_bias, "q_bias");
  out.k = convert<T>(w.k, "k");
  out.k_rope = convert<T>(w.k_rope, "k_rope");
  out.v = convert<T>(w.v, "v");
  out.o = convert<T>(w.o, "o");
  out.o_bias = convert<T>(w.o_bias, "o_bias");
  out.q_head_norm = convert<T>(w.q_head_norm, "q_head_norm");
  out.k_head_norm = convert<T>(w.k_head_norm, "k_head_norm");
  out.head_norm_epsilon = w.head_norm_epsilon;
  out.sinks = w.sinks;
  if (w.latent)
    out.latent = {convert<T>(w.latent->kv_a, "latent.kv_a"),
                  convert<T>(w.latent->kv_norm, "latent.kv_norm"),
                  convert<T>(w.latent->q_a, "latent.q_a"),
                  convert<T>(w.latent->q_norm, "latent.q_norm"), w.latent->norm_epsilon};
  return out;
}

}  // namespace bda::inline v0
