#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "bda/core/index_set.hpp"
#include "bda/decomposition/head_factors.hpp"
#include "bda/linalg/product.hpp"
#include "bda/model/attention_weights.hpp"
#include "bda/model/latent_change.hpp"
#include "bda/preparation/convert.hpp"

namespace bda::inline v0::detail {

/// A change of the latent's channels that MLA allows for free: RMS normalisation commutes with
/// permutations, and, once its gain is folded into what follows, with every orthogonal matrix.
/// What the latent cache holds changes with it.
class LatentTransform {
 public:
  LatentTransform() = default;

  /// c Q replaces c, where c has lost its gain.
  static LatentTransform rotation(linalg::RowMatrix<double> q) {
    LatentTransform t;
    t.rotation_ = std::move(q);
    return t;
  }

  /// Orders the channels so that scattered basis sets become slices:
  /// [S_k \ S_v, both, S_v \ S_k, rest]. The sets are renumbered. Nothing to do for slices.
  static LatentTransform gather(IndexSet* qk, IndexSet* vo) {
    LatentTransform t;
    if ((!qk || qk->is_slice()) && (!vo || vo->is_slice())) return t;
    const std::int64_t d = qk ? qk->dim() : vo->dim();
    std::vector<int> key(static_cast<std::size_t>(d), 3);
    const auto position = [&](std::int64_t channel) -> int& {
      return key[static_cast<std::size_t>(channel)];
    };
    if (qk)
      for (std::int64_t s : qk->indices()) position(s) = 0;
    if (vo)
      for (std::int64_t s : vo->indices()) position(s) = position(s) == 0 ? 1 : 2;
    std::int64_t only_qk = 0;
    for (int group = 0; group < 4; ++group) {
      for (std::int64_t channel = 0; channel < d; ++channel)
        if (position(channel) == group) t.order_.push_back(channel);
      if (group == 0 && qk) only_qk = static_cast<std::int64_t>(t.order_.size());
    }
    if (qk) *qk = IndexSet::slice(d, 0, qk->size());
    if (vo) *vo = IndexSet::slice(d, only_qk, vo->size());
    return t;
  }

  [[nodiscard]] bool rotates() const { return rotation_.size() > 0; }
  [[nodiscard]] bool identity() const { return !rotates() && order_.empty(); }
  [[nodiscard]] LatentChange change() const {
    if (rotates()) return LatentChange::kRotated;
    return order_.empty() ? LatentChange::kNone : LatentChange::kPermuted;
  }

  /// What a weight [d, any] becomes whose input is the latent. With a rotation `weight` must have
  /// the gain folded in.
  template <class S>
  [[nodiscard]] linalg::RowMatrix<S> applied_to(linalg::RowMatrix<S> weight) const {
    if (rotates()) return linalg::transposed_multiply(rotation_, weight);
    if (!order_.empty()) return linalg::gather_rows(weight, order_);
    return weight;
  }

  /// The projection that makes the latent, stored in T.
  template <class T, class U>
  [[nodiscard]] LatentProjection<T> upstream(const LatentProjection<U>& l) const {
    LatentProjection<T> out;
    if (rotates()) {
      const linalg::RowMatrix<double> a = linalg::map(l.kv_a).template cast<double>();
      out.kv_a = stored<T>(linalg::multiply(a, rotation_), "latent.kv_a");
      out.kv_norm.assign(l.kv_norm.size(), static_cast<T>(1.0f));
    } else {
      out.kv_a = convert<T>(l.kv_a, "latent.kv_a");
      out.kv_norm = convert<T>(l.kv_norm, "latent.kv_norm");
      for (std::int64_t i = 0; i < out.kv_a.rows; ++i) reorder(&out.kv_a(i, 0));
      reorder(out.kv_norm.data());
    }
    out.q_a = convert<T>(l.q_a, "latent.q_a");
    out.q_norm = convert<T>(l.q_norm, "latent.q_norm");
    out.norm_epsilon = l.norm_epsilon;
    return out;
  }

  template <class T>
  [[nodiscard]] static Matrix<T> stored(const linalg::RowMatrix<double>& values,
                                        std::string_view name) {
    Matrix<T> m(values.rows(), values.cols());
    store<T>(values.data(), values.size(), m.data(), name);
    return m;
  }

 private:
  /// Puts one value a channel into the new order.
  template <class T>
  void reorder(T* values) const {
    const std::vector<T> old(values, values + order_.size());
    for (std::size_t i = 0; i < order_.size(); ++i)
      values[i] = old[static_cast<std::size_t>(order_[i])];
  }

  linalg::RowMatrix<double> rotation_;  // Q [d, d], or empty
  std::vector<std::int64_t> order_;     // new channel i is old channel order[i], or empty
};

}  // namespace bda::inline v0::detail
