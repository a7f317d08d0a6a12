#pragma once

#include <cstdint>

#include "bda/core/tensor_view.hpp"

namespace bda::inline v0 {

/// What a K/V cache keeps of each token.
enum class CacheForm {
  kMaterialized,  // keys [nope | rope] and values of every K/V head
  kLatent         // MLA only: the normed latent and the rotated rope key, whatever the heads
};

/// How an MLA layer goes from its latents to scores and values. Both are exact.
enum class LatentProducts {
  kMaterialized,  // keys and values are formed from the latents: best for long inputs
  kAbsorbed       // queries and outputs are moved into latent space: best for decoding
};

/// Which keys a query sees, and what is added to its logits.
///
/// Query i has position p = i + (tokens in the cache before the call) in self-attention, p = i in
/// cross-attention; key j has position j, cached tokens first.
template <class C>
struct AttentionMask {
  bool causal = true;                         // key j is visible where j <= p
  std::int64_t window = 0;                    // and p - j < window; 0 for no limit
  const std::int64_t* key_lengths = nullptr;  // [batch], and j < key_lengths[b]; null for all keys
  /// [heads, queries, keys], or empty: added to the scaled (and capped) logits: ALiBi, T5, or any
  /// mask of a caller's own as -inf.
  TensorView<const C, 3> bias{};
};

/// The operands of one attention layer. C is the type of activations: double for weights stored in
/// double, else float. Every view needs unit stride in its last dimension.
template <class C>
struct AttentionArguments {
  TensorView<const C, 3> x{};  // [batch, queries, hidden_dim]
  /// Null data: self-attention. Else cross-attention to [batch, keys, context_dim]; with a cache, a
  /// context of extent 0 in keys (and data not null) attends to what the cache holds already.
  TensorView<const C, 3> context{};
  TensorView<C, 3> out{};  // [batch, queries, out_dim]
  AttentionMask<C> mask{};
  LatentProducts latent_products = LatentProducts::kMaterialized;

  [[nodiscard]] bool is_cross_attention() const { return context.data != nullptr; }
  /// The sequence that new keys and values come from.
  [[nodiscard]] TensorView<const C, 3> key_source() const {
    return is_cross_attention() ? context : x;
  }
};

}  // namespace bda::inline v0
