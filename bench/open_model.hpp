#pragma once

#include <Eigen/Core>
#include <cmath>
#include <cstdint>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "../examples/perplexity/layers.hpp"
#include "bda/checkpoint/transformer.hpp"
#include "bda/cpu/elementwise.hpp"

namespace bda_bench {

/// A language model whose linear layers and attention can be replaced from outside, one window of
/// tokens at a time. C (float or double) is what weights and activations are in. It takes plain
/// attention weights without head norms, sinks or caps, and no experts: throws for others.
template <class C>
class OpenModel {
 public:
  using Rows = bda::linalg::RowMatrix<C>;
  /// x W for a named weight of layer `layer`; the bias is added by the model.
  using Linear = std::function<Rows(std::int64_t layer, const std::string& name, const Rows& x,
                                    const bda::Matrix<C>& weight)>;
  /// Causal attention of one head: q, k [n, head_dim], v [n, v_dim] to [n, v_dim].
  using Attend = std::function<Rows(std::int64_t layer, std::int64_t head, const Rows& q,
                                    const Rows& k, const Rows& v, double scale)>;

  Linear linear = [](std::int64_t, const std::string&, const Rows& x,
                     const bda::Matrix<C>& w) -> Rows { return x * bda::linalg::map(w); };
  Attend attend = [](std::int64_t, std::int64_t, const Rows& q, const Rows& k, const Rows& v,
                     double scale) { return softmax_attention(q, k, v, scale); };

  explicit OpenModel(const bda::checkpoint::TransformerWeights<C>& weights) : weights_(weights) {
    for (const auto& layer : weights.layers) {
      const auto& a = layer.attention;
      if (!a.q_head_norm.empty() || !a.k_head_norm.empty() || !a.sinks.empty() ||
          a.config.logit_softcap != 0 || a.k.decomposed() || a.v.decomposed() ||
          a.k_rope.decomposed())
        throw std::invalid_argument("OpenModel: attention of a kind it does not take");
    }
  }

  /// -log p of every token but the first: the sum over the window.
  [[nodiscard]] double loss(std::span<const std::int64_t> tokens) const {
    const Rows hidden = forward(tokens);
    const Rows logits = hidden * bda::linalg::map(weights_.output_embedding()).transpose();
    double sum = 0;
    for (Eigen::Index t = 0; t + 1 < logits.rows(); ++t) {
      const auto row = logits.row(t).template cast<double>().eval();
      const double largest = row.maxCoeff();
      sum += largest + std::log((row.array() - largest).exp().sum()) -
             row(tokens[static_cast<std::size_t>(t + 1)]);
    }
    return sum;
  }

  /// The last layer's output, normed: [tokens, hidden].
  [[nodiscard]] Rows forward(std::span<const std::int64_t> tokens) const {
    const auto embedding = bda::linalg::map(weights_.embedding);
    const auto positions = bda::linalg::map(weights_.positions);
    Rows x(static_cast<Eigen::Index>(tokens.size()), embedding.cols());
    for (Eigen::Index t = 0; t < x.rows(); ++t) {
      x.row(t) = embedding.row(tokens[static_cast<std::size_t>(t)]);
      if (positions.rows() > 0) x.row(t) += positions.row(t);
    }
    for (std::size_t i = 0; i < weights_.layers.size(); ++i) {
      const auto& layer = weights_.layers[i];
      const auto index = static_cast<std::int64_t>(i);
      x += attention(index, layer.attention, perplexity::evaluate(layer.attention_norm, x));
      x += mlp(index, layer.mlp, perplexity::evaluate(layer.mlp_norm, x));
    }
    return perplexity::evaluate(weights_.final_norm, x);
  }

  static Rows softmax_attention(const Rows& q, const Rows& k, const Rows& v, double scale) {
    Rows out(q.rows(), v.cols());
    constexpr Eigen::Index kBlock = 64;
    for (Eigen::Index i = 0; i < q.rows(); i += kBlock) {
      const Eigen::Index rows = std::min(kBlock, q.rows() - i), keys = i + rows;
      Rows s = static_cast<C>(scale) * (q.middleRows(i, rows) * k.topRows(keys).transpose());
      for (Eigen::Index r = 0; r < rows; ++r) {
        auto seen = s.row(r).head(i + r + 1).array();
        seen = (seen - seen.maxCoeff()).exp();
        seen /= seen.sum();
        s.row(r).tail(keys - (i + r + 1)).setZero();
      }
      out.middleRows(i, rows).noalias() = s * v.topRows(keys);
    }
    return out;
  }

 private:
  [[nodiscard]] Rows apply(std::int64_t layer, const std::string& name, const Rows& x,
                           const bda::Matrix<C>& w, const std::vector<C>& bias) const {
    Rows y = linear(layer, name, x, w);
    if (!bias.empty()) y.rowwise() += perplexity::widened_row(bias);
    return y;
  }

  [[nodiscard]] Rows attention(std::int64_t layer, const bda::AttentionWeights<C>& w,
                               const Rows& x) const {
    const bda::AttentionConfig& c = w.config;
    Rows source = x;
    if (w.latent) {
      if (!w.latent->q_a.empty()) throw std::invalid_argument("OpenModel: q_lora");
      source = linear(layer, "kv_a", x, w.latent->kv_a);
      for (Eigen::Index t = 0; t < source.rows(); ++t)
        bda::cpu::rms_norm(source.row(t).data(), w.latent->kv_norm, w.latent->norm_epsilon);
    }
    Rows q = apply(layer, "q", x, w.q, w.q_bias);
    Rows rope_key;
    if (c.rope_dim > 0) rope_key = apply(layer, "k_rope", x, w.k_rope.weight, w.k_rope.bias);
    Rows nope_key;
    if (c.qk_dim > 0) nope_key = apply(layer, "k", source, w.k.weight, w.k.bias);
    const Rows v = apply(layer, "v", source, w.v.weight, w.v.bias);

    std::vector<C> cos(static_cast<std::size_t>(x.rows() * c.rope_dim / 2)), sin(cos.size());
    bda::cpu::RotaryTable<C> table{cos.data(), sin.data(), c.rope_dim / 2};
    table.fill(c.rope, 0, x.rows());
    Rows mixed(x.rows(), c.heads * c.v_dim);
    for (std::int64_t h = 0; h < c.heads; ++h) {
      const std::int64_t g = h / c.group_size(), width = c.head_dim();
      Rows query = q.middleCols(h * width, width), key(x.rows(), width);
      if (c.qk_dim > 0) key.leftCols(c.qk_dim) = nope_key.middleCols(g * c.qk_dim, c.qk_dim);
      if (c.rope_dim > 0) {
        key.rightCols(c.rope_dim) =
            rope_key.middleCols(c.shared_rope_key ? 0 : g * c.rope_dim, c.rope_dim);
        for (Eigen::Index t = 0; t < x.rows(); ++t) {
          table.rotate(query.row(t).data() + c.qk_dim, t, c.rope.style);
          table.rotate(key.row(t).data() + c.qk_dim, t, c.rope.style);
        }
      }
      mixed.middleCols(h * c.v_dim, c.v_dim) =
          attend(layer, h, query, key, v.middleCols(g * c.v_dim, c.v_dim), c.scale);
    }
    return apply(layer, "o", mixed, w.o, w.o_bias);
  }

  [[nodiscard]] Rows mlp(std::int64_t layer, const bda::checkpoint::Mlp<C>& m,
                         const Rows& x) const {
    if (const auto* gated = std::get_if<bda::checkpoint::GatedMlp<C>>(&m)) {
      Rows h = apply(layer, "gate", x, gated->gate.weight, gated->gate.bias);
      perplexity::activate(gated->activation, h);
      h.array() *= apply(layer, "up", x, gated->up.weight, gated->up.bias).array();
      return apply(layer, "down", h, gated->down.weight, gated->down.bias);
    }
    if (const auto* plain = std::get_if<bda::checkpoint::PlainMlp<C>>(&m)) {
      Rows h = apply(layer, "up", x, plain->up.weight, plain->up.bias);
      perplexity::activate(plain->activation, h);
      return apply(layer, "down", h, plain->down.weight, plain->down.bias);
    }
    throw std::invalid_argument("OpenModel: experts");
  }

  const bda::checkpoint::TransformerWeights<C>& weights_;
};

}  // namespace bda_bench
