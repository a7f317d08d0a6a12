#pragma once

#include <cstdint>

#include "bda/attention/arguments.hpp"
#include "bda/core/checks.hpp"
#include "bda/core/tensor_view.hpp"
#include "bda/cuda_backend/device_array.hpp"
#include "bda/model/attention_config.hpp"

namespace bda::inline v0::cuda {

/// What one attention layer has seen, in device memory: keys and values, token-major, as the
/// attention step reads them, or MLA's latents with their rotated rope key behind. Made by
/// `BDAttention::make_cache`.
template <class T>
class KvCache {
 public:
  /// `layer` identifies the layer: `run` refuses the cache of another one.
  KvCache(const AttentionConfig& c, const void* layer, std::int64_t batch, std::int64_t capacity,
          CacheForm form)
      : form_(form), layer_(layer), batch_(batch), capacity_(capacity) {
    check::at_least("cache.batch", batch, 1);
    check::at_least("cache.capacity", capacity, 1);
    if (form == CacheForm::kLatent) {
      first_ = Block(batch, capacity, 1, c.kv_dim + c.rope_dim);
    } else {
      first_ = Block(batch, capacity, c.kv_heads, c.head_dim());
      second_ = Block(batch, capacity, c.kv_heads, c.v_dim);
    }
  }

  [[nodiscard]] CacheForm form() const { return form_; }
  [[nodiscard]] const void* layer() const { return layer_; }
  [[nodiscard]] std::int64_t batch() const { return batch_; }
  /// Tokens of each sequence it can hold, and holds.
  [[nodiscard]] std::int64_t capacity() const { return capacity_; }
  [[nodiscard]] std::int64_t length() const { return length_; }
  [[nodiscard]] std::int64_t bytes() const {
    return static_cast<std::int64_t>(first_.data.bytes() + second_.data.bytes());
  }
  /// Forgets all tokens but the first `length`; throws where it holds fewer.
  void truncate(std::int64_t length) {
    check::in_range("cache.truncate.length", length, 0, length_);
    length_ = length;
  }

  /// Tokens [first, first + count) as [batch, tokens, kv_heads, width]; keys of the latent form are
  /// [batch, tokens, 1, kv_dim + rope_dim], of which the first kv_dim are the values too.
  [[nodiscard]] TensorView<T, 4> keys(std::int64_t first, std::int64_t count) const {
    return first_.view(first, count);
  }
  [[nodiscard]] TensorView<T, 4> values(std::int64_t first, std::int64_t count) const {
    return second_.view(first, count);
  }
  /// For the backend, once the kernels that write the new tokens are launched.
  void set_length(std::int64_t length) { length_ = length; }

 private:
  struct Block {
    Block() = default;
    Block(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t w)
        : batch(b), capacity(t), heads(h), width(w), data(b * t * h * w) {}
    [[nodiscard]] TensorView<T, 4> view(std::int64_t first, std::int64_t count) const {
      const std::int64_t token = heads * width;
      return {data.data() + first * token,
              {batch, count, heads, width},
              {capacity * token, token, width, 1}};
    }
    std::int64_t batch = 0, capacity = 0, heads = 0, width = 0;
    DeviceArray<T> data;
  };

  CacheForm form_;
  const void* layer_;
  std::int64_t batch_, capacity_, length_ = 0;
  Block first_, second_;
};

}  // namespace bda::inline v0::cuda
