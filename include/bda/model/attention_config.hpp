#pragma once

#include <cstdint>

#include "bda/core/checks.hpp"
#include "bda/model/rope.hpp"

namespace bda::inline v0 {

/// The shape and score function of one attention layer, the same before and after decomposition.
///
/// One type covers multi-head, grouped-query, cross- and multi-head latent attention. A head's
/// query and key are `[nope | rope]`: `qk_dim` channels without a rotary embedding, then `rope_dim`
/// rotated ones. Llama has qk_dim = 0, GPT-2 rope_dim = 0, DeepSeek both.
struct AttentionConfig {
  std::int64_t query_dim = 0;  // D: rows of the query projection (with q_lora: its rank)
  std::int64_t kv_dim = 0;     // d: rows of the key and value projections (MLA: the latent's width)
  std::int64_t out_dim = 0;    // columns of the output projection
  std::int64_t heads = 0;      // n
  std::int64_t kv_heads = 0;   // divides heads; head j reads K/V head j / (heads / kv_heads)
  std::int64_t qk_dim = 0;     // r on the QK side; 0 where every channel is rotated
  std::int64_t rope_dim = 0;   // 0 without rotary embedding
  std::int64_t v_dim = 0;      // r on the VO side
  bool shared_rope_key = false;  // one rotated key for all heads (MLA)

  RopeConfig rope;
  double scale = 0;          // multiplies q k^T
  double logit_softcap = 0;  // s -> cap tanh(s / cap); 0 for none

  /// Width of a head's query and key.
  [[nodiscard]] std::int64_t head_dim() const { return qk_dim + rope_dim; }
  [[nodiscard]] std::int64_t rope_key_heads() const { return shared_rope_key ? 1 : kv_heads; }
  [[nodiscard]] std::int64_t group_size() const { return heads / kv_heads; }
};

/// Throws `Error` for extents that describe no attention layer.
inline void validate(const AttentionConfig& c) {
  check::at_least("config.query_dim", c.query_dim, 1);
  check::at_least("config.kv_dim", c.kv_dim, 1);
  check::at_least("config.out_dim", c.out_dim, 1);
  check::at_least("config.kv_heads", c.kv_heads, 1);
  check::multiple_of("config.heads", c.heads, c.kv_heads, "kv_heads");
  check::at_least("config.qk_dim", c.qk_dim, 0);
  check::at_least("config.rope_dim", c.rope_dim, 0);
  check::at_least("config.qk_dim + config.rope_dim", c.head_dim(), 1);
  check::at_least("config.v_dim", c.v_dim, 1);
  check::equal("config.rope_dim % 2", c.rope_dim % 2, 0);
  check::equal("config.rope.frequencies.size", static_cast<std::int64_t>(c.rope.frequencies.size()),
               c.rope_dim / 2, "rope_dim / 2");
  if (!(c.scale > 0) || !std::isfinite(c.scale))
    throw Error("config.scale", "a positive number", std::to_string(c.scale));
  if (!(c.logit_softcap >= 0) || !std::isfinite(c.logit_softcap))
    throw Error("config.logit_softcap", "zero or a positive number",
                std::to_string(c.logit_softcap));
}

}  // namespace bda::inline v0
