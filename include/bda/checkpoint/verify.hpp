#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "bda/checkpoint/conversion.hpp"
#include "bda/linalg/product.hpp"
#include "bda/model/attention_weights.hpp"

/// Whether a stored module computes what the original does: both take the same random input, in
/// double.
///
/// Queries and keys come from standard normal rows that go through all of the module's weights (the
/// latent and its norm too, but not the rotation, which decomposition leaves alone), 32 of them
/// each; compared are, head by head, the scores `Q Kᵀ` and the values' outputs `V Wo`. Constants
/// that softmax or the output bias absorb are taken out first: of each query over its keys, of each
/// output channel over the tokens.
///
/// What error to expect follows from the storage type: an entry w of a weight that is not the
/// original's own is off by a rounding of variance at most (u w)² / 3, each by itself, and the
/// variances are carried through the same products.
namespace bda::inline v0::checkpoint {

/// Each of the head whose error is largest next to what is expected.
struct AttentionVerification {
  SideVerification qk, vo;
};

namespace detail {

using Probe = linalg::RowMatrix<double>;

/// Random rows on their way through a module, and the variance of what rounding adds to them.
struct NoisyRows {
  Probe value, variance;
};

/// One module's forward steps on random rows.
template <class S>
class ProbedModule {
 public:
  /// `original`: whose weights are exact. `noise`: the variance of a rounding of 1.
  ProbedModule(const AttentionWeights<S>& weights, const AttentionWeights<S>& original,
               double noise)
      : w_(weights), original_(original), noise_(noise) {}

  /// What the queries of all heads are computed from.
  [[nodiscard]] NoisyRows query_source(const NoisyRows& x) const {
    if (!w_.latent || w_.latent->q_a.empty()) return x;
    return normed(apply(linalg::map(w_.latent->q_a), linalg::map(original_.latent->q_a), x),
                  w_.latent->q_norm);
  }
  /// What keys and values are computed from.
  [[nodiscard]] NoisyRows context(const NoisyRows& x) const {
    if (!w_.latent) return x;
    return normed(apply(linalg::map(w_.latent->kv_a), linalg::map(original_.latent->kv_a), x),
                  w_.latent->kv_norm);
  }

  /// The query of head h, [rows, qk_dim + rope_dim].
  [[nodiscard]] NoisyRows query(std::int64_t h, const NoisyRows& source) const {
    const std::int64_t width = w_.config.head_dim();
    NoisyRows q = apply(columns(w_.q, h, width), columns(original_.q, h, width), source);
    add_bias(q, w_.q_bias, h * width);
    scale(q, w_.q_head_norm, original_.q_head_norm);
    return q;
  }
  /// The key of K/V head g: from the context, and, of its rotary part, from the hidden rows `x`.
  [[nodiscard]] NoisyRows key(std::int64_t g, const NoisyRows& context, const NoisyRows& x) const {
    const AttentionConfig& c = w_.config;
    NoisyRows k{Probe::Zero(x.value.rows(), c.head_dim()), {}};
    k.variance = k.value;
    const auto place = [&](std::int64_t at, const NoisyRows& part) {
      k.value.middleCols(at, part.value.cols()) = part.value;
      k.variance.middleCols(at, part.value.cols()) = part.variance;
    };
    if (c.qk_dim > 0) place(0, projected(w_.k, original_.k, g, c.qk_dim, context));
    if (c.rope_dim > 0)
      place(c.qk_dim, projected(w_.k_rope, original_.k_rope, c.shared_rope_key ? 0 : g, c.rope_dim,
                                w_.latent ? x : context));
    scale(k, w_.k_head_norm, original_.k_head_norm);
    return k;
  }
  [[nodiscard]] NoisyRows value(std::int64_t g, const NoisyRows& context) const {
    return projected(w_.v, original_.v, g, w_.config.v_dim, context);
  }
  /// The output of head h for its values, [rows, out_dim].
  [[nodiscard]] NoisyRows output(std::int64_t h, const NoisyRows& value) const {
    const std::int64_t width = w_.config.v_dim;
    const auto rows = [&](const Matrix<S>& o) {
      return linalg::map(o).middleRows(h * width, width);
    };
    return apply(rows(w_.o), rows(original_.o), value);
  }

 private:
  /// x times a stored weight, which is exact where it is the original's.
  template <class A, class B>
  [[nodiscard]] NoisyRows apply(const A& stored, const B& original, const NoisyRows& x) const {
    const bool same = stored.rows() == original.rows() && stored == original;
    const Probe w = stored.template cast<double>(), squared = w.cwiseAbs2();
    NoisyRows y{linalg::multiply(x.value, w), linalg::multiply(x.variance, squared)};
    if (!same) linalg::add_product(y.variance, Probe(x.value.cwiseAbs2()), squared, noise_);
    return y;
  }
  /// Those of head h.
  static auto columns(const Matrix<S>& m, std::int64_t h, std::int64_t width) {
    return linalg::map(m).middleCols(h * width, width);
  }

  /// RMS-normed, with gain. What rounding does to the norm itself is the mean of many roundings.
  [[nodiscard]] NoisyRows normed(NoisyRows x, const std::vector<S>& gain) const {
    for (Eigen::Index t = 0; t < x.value.rows(); ++t) {
      const double factor =
          1 / std::sqrt(x.value.row(t).squaredNorm() / static_cast<double>(x.value.cols()) +
                        w_.latent->norm_epsilon);
      for (Eigen::Index i = 0; i < x.value.cols(); ++i) {
        const double g = factor * static_cast<double>(gain[static_cast<std::size_t>(i)]);
        x.value(t, i) *= g;
        x.variance(t, i) = x.variance(t, i) * g * g + noise_ * x.value(t, i) * x.value(t, i);
      }
    }
    return x;
  }

  /// A head's keys or values, plain or decomposed.
  [[nodiscard]] NoisyRows projected(const KvProjection<S>& p, const KvProjection<S>& original,
                                    std::int64_t g, std::int64_t width,
                                    const NoisyRows& from) const {
    const auto weight = columns(p.weight, g, width), plain = columns(original.weight, g, width);
    NoisyRows y;
    if (!p.basis) {
      y = apply(weight, plain, from);
    } else {
      const std::vector<std::int64_t> rest = p.basis->rest();
      y = apply(weight, plain, {gathered(from.value, rest), gathered(from.variance, rest)});
      y.value += gathered(from.value, p.basis->indices());
      y.variance += gathered(from.variance, p.basis->indices());
    }
    add_bias(y, p.bias, g * width);
    return y;
  }
  static Probe gathered(const Probe& x, const std::vector<std::int64_t>& channels) {
    Probe y(x.rows(), static_cast<Eigen::Index>(channels.size()));
    for (std::size_t i = 0; i < channels.size(); ++i)
      y.col(static_cast<Eigen::Index>(i)) = x.col(channels[i]);
    return y;
  }

  void add_bias(NoisyRows& x, const std::vector<S>& bias, std::int64_t first) const {
    if (bias.empty()) return;
    for (Eigen::Index i = 0; i < x.value.cols(); ++i) {
      const auto b = static_cast<double>(bias[static_cast<std::size_t>(first + i)]);
      x.value.col(i).array() += b;
      x.variance.col(i).array() += noise_ * b * b;
    }
  }
  /// By a head norm's gain; the norm's own division is the same for original and stored.
  void scale(NoisyRows& x, const std::vector<S>& gain, const std::vector<S>& original) const {
    const double noise = gain == original ? 0 : noise_;
    for (std::size_t i = 0; i < gain.size(); ++i) {
      const auto g = static_cast<double>(gain[i]);
      auto value = x.value.col(static_cast<Eigen::Index>(i));
      auto variance = x.variance.col(static_cast<Eigen::Index>(i));
      value *= g;
      variance = variance * (g * g) + noise * value.cwiseAbs2();
    }
  }

  const AttentionWeights<S>& w_;
  const AttentionWeights<S>& original_;
  double noise_;
};

/// Keeps the head whose error stands out most next to what is expected of it.
inline void keep_worst(SideVerification& worst, const Probe& original, const Probe& difference,
                       double variance) {
  const auto excess = [](const SideVerification& s) {
    if (s.error == 0) return 0.0;
    const double ratio = s.error / s.expected;
    return std::isnan(ratio) ? std::numeric_limits<double>::infinity() : ratio;
  };
  const double norm = original.norm();
  if (norm == 0 && difference.norm() == 0) return;
  const SideVerification found{difference.norm() / norm, std::sqrt(variance) / norm};
  if (excess(found) >= excess(worst)) worst = found;
}

}  // namespace detail

/// Compares a module with what was stored of it in `dtype`. Both have the same config.
template <class S>
[[nodiscard]] AttentionVerification verify_attention(const AttentionWeights<S>& original,
                                                     const AttentionWeights<S>& stored,
                                                     DType dtype) {
  using detail::NoisyRows;
  using detail::Probe;
  const AttentionConfig& c = original.config;
  constexpr std::int64_t kRows = 32;
  const double u = dtype == DType::kF64   ? 0x1p-53
                   : dtype == DType::kF32 ? 0x1p-24
                   : dtype == DType::kF16 ? 0x1p-11
                                          : 0x1p-8;
  // The products here, and those that made the decomposition, round in double.
  const double longest =
      static_cast<double>(std::max({original.hidden_dim(), c.kv_dim, c.out_dim}));
  const double noise = (u * u + longest * 0x1p-106) / 3;

  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  const auto draw = [&](std::int64_t width) {
    NoisyRows rows{Probe(kRows, width), Probe::Zero(kRows, width)};
    for (Eigen::Index i = 0; i < rows.value.size(); ++i) rows.value.data()[i] = normal(random);
    return rows;
  };
  const NoisyRows x = draw(original.hidden_dim()), y = draw(original.context_dim());
  const detail::ProbedModule<S> plain(original, original, 0), bd(stored, original, noise);
  const NoisyRows plain_source = plain.query_source(x), bd_source = bd.query_source(x);
  const NoisyRows plain_context = plain.context(y), bd_context = bd.context(y);

  AttentionVerification result;
  for (std::int64_t g = 0; g < c.kv_heads; ++g) {
    const NoisyRows plain_key = plain.key(g, plain_context, y), bd_key = bd.key(g, bd_context, y);
    const NoisyRows plain_value = plain.value(g, plain_context), bd_value = bd.value(g, bd_context);
    for (std::int64_t h = g * c.group_size(); h < (g + 1) * c.group_size(); ++h) {
      const NoisyRows bd_query = bd.query(h, bd_source);
      Probe scores =
          linalg::multiply_transposed(plain.query(h, plain_source).value, plain_key.value);
      Probe difference = linalg::multiply_transposed(bd_query.value, bd_key.value) - scores;
      const double variance =
          linalg::multiply_transposed(bd_query.variance, Probe(bd_key.value.cwiseAbs2())).sum() +
          linalg::multiply_transposed(Probe(bd_query.value.cwiseAbs2()), bd_key.variance).sum();
      scores.colwise() -= scores.rowwise().mean().eval();
      difference.colwise() -= difference.rowwise().mean().eval();
      detail::keep_worst(result.qk, scores, difference, variance);

      const NoisyRows bd_out = bd.output(h, bd_value);
      Probe out = plain.output(h, plain_value).value;
      Probe out_difference = bd_out.value - out;
      out.rowwise() -= out.colwise().mean().eval();
      out_difference.rowwise() -= out_difference.colwise().mean().eval();
      detail::keep_worst(result.vo, out, out_difference, bd_out.variance.sum());
    }
  }
  return result;
}

/// Throws `Error` where the error is more than rounding explains: four times what is expected of
/// it, root mean square over a thousand values and more.
inline void check_verified(const std::string& name, const SideVerification& found) {
  constexpr double kFactor = 4;
  if (found.error <= kFactor * found.expected) return;
  throw Error(name, "a relative error of at most " + quote(Json(kFactor * found.expected)),
              quote(Json(found.error)));
}

}  // namespace bda::inline v0::checkpoint
