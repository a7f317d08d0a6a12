#pragma once

#include <cstdint>
#include <vector>

#include "bda/attention/arguments.hpp"
#include "bda/core/checks.hpp"
#include "bda/core/tensor_view.hpp"
#include "bda/model/attention_config.hpp"

namespace bda::inline v0 {

/// The tokens one attention layer has seen, for a batch of sequences of equal length.
///
/// Made by `BDAttention::make_cache`; it allocates its whole capacity then. T is what it stores:
/// the compute type, or a 16-bit type to halve it (keys, values and latents are then rounded once).
template <class T>
class KvCache {
 public:
  /// `layer` identifies the layer: `run` refuses the cache of another one.
  KvCache(const AttentionConfig& c, const void* layer, std::int64_t batch, std::int64_t capacity,
          CacheForm form)
      : form_(form), layer_(layer), batch_(batch), capacity_(capacity) {
    check::at_least("cache.batch", batch, 1);
    check::at_least("cache.capacity", capacity, 1);
    if (form == CacheForm::kMaterialized) {
      first_ = Block(batch, c.kv_heads, capacity, c.head_dim());
      second_ = Block(batch, c.kv_heads, capacity, c.v_dim);
    } else {
      first_ = Block(batch, 1, capacity, c.kv_dim);
      second_ = Block(batch, c.rope_key_heads(), capacity, c.rope_dim);
    }
  }

  [[nodiscard]] CacheForm form() const { return form_; }
  [[nodiscard]] const void* layer() const { return layer_; }
  [[nodiscard]] std::int64_t batch() const { return batch_; }
  /// Tokens of each sequence it can hold, and holds.
  [[nodiscard]] std::int64_t capacity() const { return capacity_; }
  [[nodiscard]] std::int64_t length() const { return length_; }
  [[nodiscard]] std::int64_t bytes() const {
    return static_cast<std::int64_t>((first_.values.size() + second_.values.size()) * sizeof(T));
  }

  /// Forgets all tokens but the first `length`; throws where it holds fewer.
  void truncate(std::int64_t length) {
    check::in_range("cache.truncate.length", length, 0, length_);
    length_ = length;
  }

  /// Tokens [first, first + count) of the keys [batch, tokens, kv_heads, head_dim], or the latents
  /// [batch, tokens, 1, kv_dim].
  TensorView<T, 4> keys(std::int64_t first, std::int64_t count) {
    return first_.view(first, count);
  }
  /// The same of the values [batch, tokens, kv_heads, v_dim], or the rotated rope keys
  /// [batch, tokens, rope_key_heads, rope_dim].
  TensorView<T, 4> values(std::int64_t first, std::int64_t count) {
    return second_.view(first, count);
  }
  /// For the backend, once the new tokens are written.
  void set_length(std::int64_t length) { length_ = length; }

 private:
  struct Block {
    std::int64_t batch = 0, heads = 0, capacity = 0, width = 0;
    std::vector<T> values;  // [batch, heads, capacity, width]

    Block() = default;
    Block(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t w)
        : batch(b),
          heads(h),
          capacity(t),
          width(w),
          values(static_cast<std::size_t>(b * h * t * w)) {}
    TensorView<T, 4> view(std::int64_t first, std::int64_t count) {
      return {values.data() + first * width,
              {batch, count, heads, width},
              {heads * capacity * width, width, capacity * width, 1}};
    }
  };

  CacheForm form_;
  const void* layer_;
  std::int64_t batch_, capacity_, length_ = 0;
  Block first_, second_;
};

}  // namespace bda::inline v0
