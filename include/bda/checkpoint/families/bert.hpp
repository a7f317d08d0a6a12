#pragma once

#include <cstdint>
#include <string>

#include "bda/checkpoint/attention_pattern.hpp"
#include "bda/checkpoint/common_fields.hpp"
#include "bda/checkpoint/projections.hpp"

/// BERT and RoBERTa: encoders with learned positions and biases everywhere. The library reads their
/// attention.
namespace bda::inline v0::checkpoint {

/// `model_type` "bert" or "roberta".
struct BertConfig {
  std::string model_type;
  std::int64_t hidden_size, num_hidden_layers, num_attention_heads;
  bool is_decoder;  // then masked causally
};

namespace detail {

inline BertConfig read_bert(ConfigFields& fields) {
  require_single_stack(fields);
  ignore_body_fields(fields);
  fields.ignore({"type_vocab_size", "output_past", "directionality", "pooler_fc_size",
                 "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head",
                 "pooler_type"});
  BertConfig c{};
  c.model_type = fields.find_text("model_type").value_or("");
  c.hidden_size = fields.extent("hidden_size");
  c.num_hidden_layers = fields.extent("num_hidden_layers");
  c.num_attention_heads = fields.extent("num_attention_heads");
  c.is_decoder = fields.flag("is_decoder", false);
  require_multiple(fields, "hidden_size", c.hidden_size, "num_attention_heads",
                   c.num_attention_heads);
  fields.require("position_embedding_type", "absolute", "relative keys are not implemented");
  return c;
}

}  // namespace detail

[[nodiscard]] inline std::int64_t attention_count(const BertConfig& c) {
  return c.num_hidden_layers;
}

[[nodiscard]] inline std::string attention_name(const BertConfig&, std::int64_t layer) {
  return "encoder.layer." + std::to_string(layer) + ".attention";
}

[[nodiscard]] inline AttentionPattern attention_pattern(const BertConfig& c, std::int64_t) {
  return {.causal = c.is_decoder};
}

[[nodiscard]] inline AttentionConfig attention_config(const BertConfig& c, std::int64_t) {
  return multi_head_config(c.hidden_size, c.num_attention_heads);
}

template <Storage T>
[[nodiscard]] WeightReader<T> weight_reader(const BertConfig& c, const TensorStore& store) {
  return {store, {c.model_type + "."}, attention_name(c, 0) + ".self.query.weight"};
}

template <Storage T>
[[nodiscard]] AttentionWeights<T> read_attention(const BertConfig& c, std::int64_t layer,
                                                 WeightReader<T>& weights) {
  const AttentionConfig a = attention_config(c, layer);
  const ProjectionNames names{"self.query", "self.key", "self.value", "output.dense"};
  return assemble(a, read_projections(a, attention_name(c, layer), names, weights));
}

}  // namespace bda::inline v0::checkpoint
