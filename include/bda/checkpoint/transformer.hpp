#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "bda/core/matrix.hpp"
#include "bda/model/attention_weights.hpp"

/// The weights of a whole decoder-only language model: what an adapter makes of a checkpoint.
/// Plain data, row-vector convention as in model/attention_weights.hpp (`y = x W`, W is [in, out]).
namespace bda::inline v0::checkpoint {

enum class NormKind {
  kRms,   // x / sqrt(mean(x^2) + epsilon) * weight
  kLayer  // (x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias
};

template <class T>
struct Norm {
  NormKind kind = NormKind::kRms;
  std::vector<T> weight;  // [dim]
  std::vector<T> bias;    // [dim], empty for kRms
  double epsilon = 1e-6;
};

enum class Activation {
  kSilu,     // x / (1 + exp(-x))
  kGelu,     // x Phi(x), by the error function
  kGeluTanh  // GELU's tanh approximation ("gelu_new")
};

template <class T>
struct Linear {
  Matrix<T> weight;     // [in, out]
  std::vector<T> bias;  // [out], empty for none
};

/// `down(activation(gate(x)) * up(x))`: Llama and DeepSeek.
template <class T>
struct GatedMlp {
  Linear<T> gate, up, down;
  Activation activation = Activation::kSilu;
};

/// `down(activation(up(x)))`: GPT-2.
template <class T>
struct PlainMlp {
  Linear<T> up, down;
  Activation activation = Activation::kGeluTanh;
};

/// How a token's experts are chosen and weighted (DeepSeek-V2, arXiv 2405.04434, section 2.2).
///
/// `s = softmax(x router)` over all experts. The experts stand in `groups` runs of equal length; a
/// group's score is its largest s. Only experts of the `groups_per_token` best groups can be chosen
/// (all where groups = 1), and of those the `experts_per_token` with the largest s. A chosen
/// expert's weight is its s times `scale`; with `normalize` (and more than one expert per token) it
/// is s over the sum of the chosen ones' s instead, and `scale` is not applied.
struct ExpertRouting {
  std::int64_t experts_per_token = 1;
  std::int64_t groups = 1, groups_per_token = 1;
  bool normalize = false;
  double scale = 1.0;
};

/// `sum over the chosen experts of weight * expert(x)`, plus `shared(x)` where there is one.
template <class T>
struct MoeMlp {
  Matrix<T> router;  // [hidden, experts]
  ExpertRouting routing;
  std::vector<GatedMlp<T>> experts;
  std::optional<GatedMlp<T>> shared;  // all shared experts as one MLP, side by side
};

template <class T>
using Mlp = std::variant<GatedMlp<T>, PlainMlp<T>, MoeMlp<T>>;

/// `x += attention(attention_norm(x)); x += mlp(mlp_norm(x))`.
template <class T>
struct TransformerLayer {
  Norm<T> attention_norm;
  AttentionWeights<T> attention;
  Norm<T> mlp_norm;
  Mlp<T> mlp;
};

/// `x = embedding[token] (+ positions[position])`, the layers in order, then
/// `logits = final_norm(x) output_embedding()^T`.
template <class T>
struct TransformerWeights {
  std::string model_type;          // as in config.json: "deepseek_v2", "gpt2", "llama"
  std::int64_t max_positions = 0;  // the longest sequence that the model was made for
  Matrix<T> embedding;             // [vocab, hidden]
  Matrix<T> positions;             // [max_positions, hidden], empty without learned positions
  std::vector<TransformerLayer<T>> layers;
  Norm<T> final_norm;
  Matrix<T> lm_head;  // [vocab, hidden], empty where it is tied to the embedding

  [[nodiscard]] std::int64_t vocab_size() const { return embedding.rows; }
  [[nodiscard]] std::int64_t hidden_dim() const { return embedding.cols; }
  [[nodiscard]] const Matrix<T>& output_embedding() const {
    return lm_head.empty() ? embedding : lm_head;
  }
};

}  // namespace bda::inline v0::checkpoint
