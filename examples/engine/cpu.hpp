#pragma once

#include "../perplexity/layers.hpp"
#include "cpu_attend.hpp"

namespace engine {

/// The model less attention, on the CPU. S is what weights are stored in.
template <class S>
class Cpu {
 public:
  using Stored = S;
  using C = bda::compute_t<S>;
  using Backend = bda::CpuBackend<S, C, CpuAttend<C>>;
  using Memory = std::unique_ptr<std::byte[]>;
  static Memory allocate(std::size_t bytes) { return std::make_unique<std::byte[]>(bytes); }
  static typename Backend::Stream stream() { return {}; }
  static void upload(const std::vector<std::int32_t>& from, std::int32_t* to) {
    std::copy(from.begin(), from.end(), to);
  }

  Cpu(const bda::checkpoint::TransformerWeights<S>& model, std::int64_t) : model_(model) {}

  void embed(std::span<const std::int64_t> tokens, std::int64_t first) {
    const auto embedding = bda::linalg::map(model_.embedding);
    const auto positions = bda::linalg::map(model_.positions);
    x_.resize(static_cast<Eigen::Index>(tokens.size()), model_.hidden_dim());
    for (Eigen::Index t = 0; t < x_.rows(); ++t) {
      x_.row(t) = embedding.row(tokens[static_cast<std::size_t>(t)]).template cast<C>();
      if (positions.rows() > 0) x_.row(t) += positions.row(first + t).template cast<C>();
    }
  }
  void norm_into(std::size_t layer, C* out) const {
    Eigen::Map<Rows>(out, x_.rows(), x_.cols()) =
        perplexity::evaluate(model_.layers[layer].attention_norm, x_);
  }
  void add_and_mlp(std::size_t layer, const C* attention) {
    const auto& [attention_norm, weights, mlp_norm, mlp] = model_.layers[layer];
    x_ += Eigen::Map<const Rows>(attention, x_.rows(), x_.cols());
    x_ += perplexity::evaluate(mlp, perplexity::evaluate(mlp_norm, x_));
  }
  std::int64_t likeliest() const {
    const Rows last = perplexity::evaluate(model_.final_norm, Rows(x_.bottomRows(1)));
    const auto words = bda::linalg::map(model_.output_embedding()).template cast<C>();
    Eigen::Index row = 0, word = 0;
    Rows(last * words.transpose()).maxCoeff(&row, &word);
    return word;
  }

 private:
  using Rows = perplexity::Activations<S>;
  const bda::checkpoint::TransformerWeights<S>& model_;
  Rows x_;  // the residual stream, [tokens, hidden]
};

}  // namespace engine
