#pragma once

#include <cstdint>

/// Where keys and values go in the memory an attention kernel reads.
namespace bda::inline v0::cuda {

/// What is stored: the type of the latent, or FP8 with a scale.
enum class KvElement { kSame, kE4m3 };

/// Element (token t, head h, channel c) lies at `data[row(t) + h * head_stride + c]`, where row(t)
/// is t * token_stride, or with `slots`, for slot s = slots[t]: s / page_size * page_stride + s %
/// page_size * token_stride; a negative slot is skipped. Strides count elements.
struct KvOutput {
  void* data = nullptr;  // on the device, like slots and scale
  KvElement element = KvElement::kSame;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;

  const std::int64_t* slots = nullptr;  // [tokens]; null: not paged
  std::int64_t page_size = 0;           // tokens of a page
  std::int64_t page_stride = 0;

  /// e4m3 alone: what is stored times the scale is the value, rounded to nearest even, saturating
  /// at 448. One float, or with `scale_per_head` one a head; null for 1.
  const float* scale = nullptr;
  bool scale_per_head = false;

  /// [tokens, heads, row]; `row` is the width, of keys with the rope part.
  [[nodiscard]] static constexpr KvOutput token_major(void* data, std::int64_t heads,
                                                      std::int64_t row) {
    KvOutput o;
    o.data = data;
    o.token_stride = heads * row;
    o.head_stride = row;
    return o;
  }
  /// [heads, tokens, row].
  [[nodiscard]] static constexpr KvOutput head_major(void* data, std::int64_t tokens,
                                                     std::int64_t row) {
    KvOutput o;
    o.data = data;
    o.token_stride = row;
    o.head_stride = tokens * row;
    return o;
  }
  /// Pages [pages, page_size, heads, row]: FlashInfer's NHD, vLLM's FlashAttention cache. Where
  /// keys and values alternate ([pages, 2, ...]), double page_stride and offset the value's data.
  [[nodiscard]] static constexpr KvOutput paged_nhd(void* data, const std::int64_t* slots,
                                                    std::int64_t page_size, std::int64_t heads,
                                                    std::int64_t row) {
    KvOutput o = token_major(data, heads, row);
    o.slots = slots;
    o.page_size = page_size;
    o.page_stride = page_size * heads * row;
    return o;
  }
  /// Pages [pages, heads, page_size, row]: HND.
  [[nodiscard]] static constexpr KvOutput paged_hnd(void* data, const std::int64_t* slots,
                                                    std::int64_t page_size, std::int64_t heads,
                                                    std::int64_t row) {
    KvOutput o = head_major(data, page_size, row);
    o.slots = slots;
    o.page_size = page_size;
    o.page_stride = page_size * heads * row;
    return o;
  }
};

}  // namespace bda::inline v0::cuda
