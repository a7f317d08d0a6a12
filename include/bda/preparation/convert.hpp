#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "bda/core/parallel.hpp"
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

/// A layer in another storage type, plainly rounded, without the weights that decomposition
/// replaces: the key's with `key`, the value's with `value` (the output's is there, but zero).
template <class T, class U>
AttentionWeights<T> convert_except(const AttentionWeights<U>& w, bool key, bool value,
                                   int threads) {
  AttentionWeights<T> out;
  out.config = w.config;
  // The large ones; as many at a time as there are threads.
  const std::array<std::function<void()>, 6> large{
      [&] { out.q = convert<T>(w.q, "q"); },
      [&] { out.o = value ? Matrix<T>(w.o.rows, w.o.cols) : convert<T>(w.o, "o"); },
      [&] {
        if (!key) out.k.weight = convert<T>(w.k.weight, "k.weight");
      },
      [&] {
        if (!value) out.v.weight = convert<T>(w.v.weight, "v.weight");
      },
      [&] { out.k_rope = convert<T>(w.k_rope, "k_rope"); },
      [&] {
        if (w.latent)
          out.latent = {convert<T>(w.latent->kv_a, "latent.kv_a"),
                        convert<T>(w.latent->kv_norm, "latent.kv_norm"),
                        convert<T>(w.latent->q_a, "latent.q_a"),
                        convert<T>(w.latent->q_norm, "latent.q_norm"), w.latent->norm_epsilon};
      }};
  parallel_for(static_cast<std::int64_t>(large.size()), threads,
               [&](std::int64_t i) { large[static_cast<std::size_t>(i)](); });
  out.q_bias = convert<T>(w.q_bias, "q_bias");
  out.k.bias = convert<T>(w.k.bias, "k.bias");
  out.k.basis = w.k.basis;
  out.v.bias = convert<T>(w.v.bias, "v.bias");
  out.v.basis = w.v.basis;
  out.o_bias = convert<T>(w.o_bias, "o_bias");
  out.q_head_norm = convert<T>(w.q_head_norm, "q_head_norm");
  out.k_head_norm = convert<T>(w.k_head_norm, "k_head_norm");
  out.head_norm_epsilon = w.head_norm_epsilon;
  out.sinks = w.sinks;
  return out;
}

/// A layer in another storage type, plainly rounded: what the original is when stored in T.
template <class T, class U>
AttentionWeights<T> convert(const AttentionWeights<U>& w, int threads = 1) {
  return convert_except<T>(w, false, false, threads);
}

}  // namespace bda::inline v0
