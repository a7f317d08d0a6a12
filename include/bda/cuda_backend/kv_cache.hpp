#pragma once

#include <cstdint>

#include "bda/attention/arguments.hpp"
#include "bda/core/checks.hpp"
#include "bda/core/tensor_view.hpp"
#include "bda/cuda_backend/device_array.hpp"
#include "bda/model/attention_config.hpp"

namespace bda::inline v0::cuda {

/// The keys and values one attention layer has seen, in device memory: token-major, as the
/// attention step reads them. Made by `BDAttention::make_cache`.
template <class T>
class KvCache {
 public:
  /// `layer` identifies the layer: `run` refuses the cache of another one.
  KvCache(const AttentionConfig& c, const void* layer, std::int64_t batch, std::int64_t capacity)
      : layer_(layer), batch_(batch), capacity_(capacity), heads_(c.kv_heads) {
    check::at_least("cache.batch", batch, 1);
    check::at_least("cache.capacity", capacity, 1);
    key_width_ = c.head_dim();
    value_width_ = c.v_dim;
    keys_ = DeviceArray<T>(batch * capacity * heads_ * key_width_);
    values_ = DeviceArray<T>(batch * capacity * heads_ * value_width_);
  }

  [[nodiscard]] CacheForm form() const { return CacheForm::kMaterialized; }
  [[nodiscard]] const void* layer() const { return layer_; }
  [[nodiscard]] std::int64_t batch() const { return batch_; }
  /// Tokens of each sequence it can hold, and holds.
  [[nodiscard]] std::int64_t capacity() const { return capacity_; }
  [[nodiscard]] std::int64_t length() const { return length_; }
  [[nodiscard]] std::int64_t bytes() const {
    return static_cast<std::int64_t>(keys_.bytes() + values_.bytes());
  }
  /// Forgets all tokens but the first `length`; throws where it holds fewer.
  void truncate(std::int64_t length) {
    check::in_range("cache.truncate.length", length, 0, length_);
    length_ = length;
  }

  /// Tokens [first, first + count) as [batch, tokens, kv_heads, width].
  [[nodiscard]] TensorView<T, 4> keys(std::int64_t first, std::int64_t count) const {
    return view(keys_, key_width_, first, count);
  }
  [[nodiscard]] TensorView<T, 4> values(std::int64_t first, std::int64_t count) const {
    return view(values_, value_width_, first, count);
  }
  /// For the backend, once the kernels that write the new tokens are launched.
  void set_length(std::int64_t length) { length_ = length; }

 private:
  [[nodiscard]] TensorView<T, 4> view(const DeviceArray<T>& values, std::int64_t width,
                                      std::int64_t first, std::int64_t count) const {
    const std::int64_t token = heads_ * width;
    return {values.data() + first * token,
            {batch_, count, heads_, width},
            {capacity_ * token, token, width, 1}};
  }

  const void* layer_;
  std::int64_t batch_, capacity_, heads_, key_width_ = 0, value_width_ = 0, length_ = 0;
  DeviceArray<T> keys_, values_;
};

}  // namespace bda::inline v0::cuda
