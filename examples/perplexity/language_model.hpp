#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "bda/attention/bd_attention.hpp"
#include "bda/checkpoint/transformer.hpp"
#include "bda/cpu/backend.hpp"
#include "layers.hpp"

namespace perplexity {

/// A decoder-only language model that runs: the checkpoint's weights, with one BDAttention a layer
/// that holds either the original attention weights or decomposed ones.
template <class T>
class LanguageModel {
 public:
  using Compute = bda::compute_t<T>;
  using Attention = bda::BDAttention<bda::CpuBackend<T>>;

  /// `weights` must outlive the model; its own attention weights are not used. Throws bda::Error
  /// where a layer's attention weights do not fit their config.
  LanguageModel(const checkpoint::TransformerWeights<T>& weights,
                std::vector<bda::AttentionWeights<T>> attention)
      : weights_(weights) {
    for (bda::AttentionWeights<T>& layer : attention) attention_.emplace_back(std::move(layer));
  }

  /// The last layer's output, normed: [sequences * length, hidden], for as many sequences of
  /// `length` tokens as `tokens` holds.
  [[nodiscard]] Activations<T> forward(std::span<const std::int64_t> tokens,
                                       std::int64_t length) const {
    Activations<T> x = embed(tokens, length);
    for (std::size_t i = 0; i < attention_.size(); ++i) {
      const checkpoint::TransformerLayer<T>& layer = weights_.layers[i];
      x += attend(attention_[i], evaluate(layer.attention_norm, x), length);
      x += evaluate(layer.mlp, evaluate(layer.mlp_norm, x));
    }
    return evaluate(weights_.final_norm, x);
  }

  /// Rows of `hidden` times the output embedding: [rows, vocab].
  [[nodiscard]] Activations<T> logits(const Eigen::Ref<const Activations<T>>& hidden) const {
    // The embedding is [vocab, hidden]: a few of its rows at a time, widened, as in `multiply`.
    const auto embedding = bda::linalg::map(weights_.output_embedding());
    constexpr Eigen::Index kPanel = 512;  // words
    Activations<T> y(hidden.rows(), embedding.rows()), panel;
    for (Eigen::Index v = 0; v < embedding.rows(); v += kPanel) {
      const Eigen::Index words = std::min(kPanel, embedding.rows() - v);
      panel = embedding.middleRows(v, words).template cast<Compute>();
      y.middleCols(v, words).noalias() = hidden * panel.transpose();
    }
    return y;
  }

  /// -log p of each token but the first of each sequence, given those before it:
  /// [sequences, length - 1], into `losses`.
  void token_losses(std::span<const std::int64_t> tokens, std::int64_t length,
                    std::span<double> losses) const {
    const Activations<T> hidden = forward(tokens, length);
    constexpr std::int64_t kBlock = 128;  // tokens whose logits are held at once
    for (std::int64_t begin = 0; begin < hidden.rows(); begin += kBlock) {
      const std::int64_t rows = std::min<std::int64_t>(kBlock, hidden.rows() - begin);
      const Activations<T> block = logits(hidden.middleRows(begin, rows));
      for (std::int64_t i = 0; i < rows; ++i) {
        const std::int64_t sequence = (begin + i) / length, position = (begin + i) % length;
        if (position + 1 == length) continue;  // nothing follows
        const std::int64_t next = tokens[static_cast<std::size_t>(begin + i + 1)];
        const auto row = block.row(i).template cast<double>().eval();
        const double largest = row.maxCoeff();
        losses[static_cast<std::size_t>(sequence * (length - 1) + position)] =
            largest + std::log((row.array() - largest).exp().sum()) - row(next);
      }
    }
  }

 private:
  Activations<T> embed(std::span<const std::int64_t> tokens, std::int64_t length) const {
    const auto embedding = bda::linalg::map(weights_.embedding);
    const auto positions = bda::linalg::map(weights_.positions);
    Activations<T> x(static_cast<Eigen::Index>(tokens.size()), embedding.cols());
    for (Eigen::Index t = 0; t < x.rows(); ++t) {
      x.row(t) = embedding.row(tokens[static_cast<std::size_t>(t)]).template cast<Compute>();
      if (positions.rows() > 0) x.row(t) += positions.row(t % length).template cast<Compute>();
    }
    return x;
  }

  static Activations<T> attend(const Attention& attention, const Activations<T>& x,
                               std::int64_t length) {
    const std::int64_t sequences = x.rows() / length;
    Activations<T> out(x.rows(), attention.config().out_dim);
    typename Attention::Arguments args;  // causal self-attention by default
    args.x = {x.data(), {sequences, length, x.cols()}};
    args.out = {out.data(), {sequences, length, out.cols()}};
    std::vector<std::byte> workspace(attention.workspace_size(args));
    if (const bda::Status status = attention.run(args, workspace); !status)
      throw std::runtime_error("attention: " + status.message());
    return out;
  }

  const checkpoint::TransformerWeights<T>& weights_;
  std::vector<Attention> attention_;
};

}  // namespace perplexity
