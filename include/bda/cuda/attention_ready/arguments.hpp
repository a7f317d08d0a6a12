#pragma once

#include <cstdint>
#include <optional>

#include "bda/core/status.hpp"
#include "bda/core/tensor_view.hpp"
#include "bda/cuda/attention_ready/config.hpp"
#include "bda/cuda/checks.hpp"
#include "bda/cuda/element.hpp"
#include "bda/cuda/kv_layout/layout.hpp"
#include "bda/cuda/projection/packing.hpp"

namespace bda::inline v0::cuda {

/// The key's or the value's side: its coefficients, its basis and where it goes.
template <class T>
struct KvSide {
  const T* coefficients = nullptr;  // packed as `packing` says
  PackedCoefficients packing;
  std::int64_t basis_begin = 0;  // S = [basis_begin, basis_begin + packing.width)
  const T* bias = nullptr;       // [heads, width], dense; null for none
  KvOutput out;

  [[nodiscard]] constexpr KvSideShape shape() const {
    return {packing.width, basis_begin, bias != nullptr, out.element, out.slots != nullptr};
  }
};

/// Keys and values of all heads as an attention kernel reads them, from the latent read once:
///   K[t, h, :] = (latent[t, S_k] + latent[t, rest_k] C_k[:, h, :] (+ b_k[h, :]), rope[t, :])
///   V[t, h, :] =  latent[t, S_v] + latent[t, rest_v] C_v[:, h, :] (+ b_v[h, :])
/// All pointers are device pointers; T is __half, __nv_bfloat16 or float.
template <class T>
struct AttentionReadyArguments {
  TensorView<const T, 2> latent;        // [tokens, kv_dim]
  TensorView<const T, 2> rope;          // [tokens, rope_width], already rotated; no data: none
  std::optional<KvSide<T>> key, value;  // what is absent is not written
  /// Programmatic dependent launch, as in ProjectionArguments: coefficients and biases must not be
  /// written by the kernel before.
  bool dependent_launch = false;
  std::optional<AttentionReadyConfig> force;  // in place of `pick`, for tests and tuning

  [[nodiscard]] constexpr std::int64_t rope_width() const {
    return key && rope.data != nullptr ? rope.extent(1) : 0;
  }
  [[nodiscard]] constexpr AttentionReadyShape shape() const {
    AttentionReadyShape s;
    s.dtype = Element<T>::dtype;
    s.tokens = latent.extent(0);
    s.kv_dim = latent.extent(1);
    s.heads = key ? key->packing.heads : value ? value->packing.heads : 0;
    s.rope_width = rope_width();
    if (key) s.key = key->shape();
    if (value) s.value = value->shape();
    return s;
  }
};

namespace detail {

/// `row` channels a head of each token, rope part included. `name` picks the key's or the value's
/// literal.
template <class T, class Name>
Status check_output(const KvOutput& out, std::int64_t tokens, std::int64_t heads, std::int64_t row,
                    const Name& name) {
  const bool paged = out.slots != nullptr;
  if (paged && (out.page_size < 1 || out.page_size > 0x7fffffff))
    return Status::invalid(name("key.out.page_size", "value.out.page_size"), "from 1 to",
                           0x7fffffff, out.page_size);
  const std::int64_t count = paged ? out.page_size : tokens;  // in a page, or in all
  if (!keeps_rows_apart(count, heads, row, out.token_stride, out.head_stride))
    return Status::invalid(name("key.out.head_stride", "value.out.head_stride"),
                           "strides that keep rows apart, at least", row, out.head_stride);
  const std::int64_t page = (heads - 1) * out.head_stride + row + (count - 1) * out.token_stride;
  if (paged && out.page_stride < page)
    return Status::invalid(name("key.out.page_stride", "value.out.page_stride"),
                           "at least a page's extent", page, out.page_stride);
  if (tokens == 0) return {};
  if (out.data == nullptr)
    return Status::invalid(name("key.out.data", "value.out.data"), "not null, unlike", 0, 0);
  if (sizeof(T) == 4) return {};
  const std::int64_t step = out.element == KvElement::kE4m3 ? 16 : 8;  // 16 bytes
  if (out.token_stride % step != 0)
    return Status::invalid(name("key.out.token_stride", "value.out.token_stride"), "a multiple of",
                           step, out.token_stride);
  if (out.head_stride % step != 0)
    return Status::invalid(name("key.out.head_stride", "value.out.head_stride"), "a multiple of",
                           step, out.head_stride);
  if (paged && out.page_stride % step != 0)
    return Status::invalid(name("key.out.page_stride", "value.out.page_stride"), "a multiple of",
                           step, out.page_stride);
  if (misalignment(out.data, 16))
    return Status::invalid(name("key.out.data modulo 16", "value.out.data modulo 16"), "equal to",
                           0, misalignment(out.data, 16));
  return {};
}

template <class T>
Status check_side(const KvSide<T>& side, bool is_key, std::int64_t tokens, std::int64_t kv_dim,
                  std::int64_t rope_width) {
  const auto name = [&](const char* key, const char* value) { return is_key ? key : value; };
  const PackedCoefficients& p = side.packing;
  if (p.version != PackedCoefficients::kVersion)
    return Status::invalid(name("key.packing.version", "value.packing.version"),
                           "the version this library packs", PackedCoefficients::kVersion,
                           p.version);
  if (p.dtype != Element<T>::dtype)
    return Status::invalid(
        name("key.packing.dtype", "value.packing.dtype"), "the type of latent (as DType)",
        static_cast<std::int64_t>(Element<T>::dtype), static_cast<std::int64_t>(p.dtype));
  if (p.heads < 1)
    return Status::invalid(name("key.packing.heads", "value.packing.heads"), "at least", 1,
                           p.heads);
  if (p.width < 1)
    return Status::invalid(name("key.packing.width", "value.packing.width"), "at least", 1,
                           p.width);
  if (p.rest < 1)
    return Status::invalid(name("key.packing.rest", "value.packing.rest"), "at least", 1, p.rest);
  if (p.columns() > 0x7fffffff)
    return Status::invalid(name("key.packing.columns()", "value.packing.columns()"), "at most",
                           0x7fffffff, p.columns());
  if (p.rest + p.width != kv_dim)
    return Status::invalid(
        name("key.packing.rest + key.packing.width", "value.packing.rest + value.packing.width"),
        "equal to latent.extent(1)", kv_dim, p.rest + p.width);
  if (side.basis_begin < 0 || side.basis_begin > p.rest)
    return Status::invalid(name("key.basis_begin", "value.basis_begin"), "from 0 to packing.rest",
                           p.rest, side.basis_begin);
  if (Status s = check_output<T>(side.out, tokens, p.heads, p.width + rope_width, name); !s.ok())
    return s;
  if (tokens == 0) return {};
  if (side.coefficients == nullptr)
    return Status::invalid(name("key.coefficients", "value.coefficients"), "not null, unlike", 0,
                           0);
  if (sizeof(T) == 4) return {};
  if (p.width % 8 != 0)
    return Status::invalid(name("key.packing.width", "value.packing.width"), "a multiple of", 8,
                           p.width);
  if (p.rest % 8 != 0)
    return Status::invalid(name("key.packing.rest", "value.packing.rest"), "a multiple of", 8,
                           p.rest);
  if (side.basis_begin % 8 != 0)
    return Status::invalid(name("key.basis_begin", "value.basis_begin"), "a multiple of", 8,
                           side.basis_begin);
  if (misalignment(side.coefficients, 128))
    return Status::invalid(name("key.coefficients modulo 128", "value.coefficients modulo 128"),
                           "equal to", 0, misalignment(side.coefficients, 128));
  if (side.bias != nullptr && misalignment(side.bias, 16))
    return Status::invalid(name("key.bias modulo 16", "value.bias modulo 16"), "equal to", 0,
                           misalignment(side.bias, 16));
  return {};
}

}  // namespace detail

/// Everything about `args` that can be checked without a device.
template <class T>
[[nodiscard]] Status check_arguments(const AttentionReadyArguments<T>& args) {
  constexpr std::int64_t kLargest = 0x7fffffff;  // token indices are 32-bit inside
  const std::int64_t tokens = args.latent.extent(0);
  if (tokens < 0 || tokens > kLargest)
    return Status::invalid("latent.extent(0)", "from 0 to", kLargest, tokens);
  if (!args.key && !args.value)
    return Status::invalid("key and value", "sides to write, at least", 1, 0);
  if (args.key && args.value && args.key->packing.heads != args.value->packing.heads)
    return Status::invalid("value.packing.heads", "equal to key.packing.heads",
                           args.key->packing.heads, args.value->packing.heads);
  if (args.latent.stride(1) != 1)
    return Status::invalid("latent.stride(1)", "equal to", 1, args.latent.stride(1));
  if (args.latent.stride(0) < args.latent.extent(1))
    return Status::invalid("latent.stride(0)", "at least latent.extent(1)", args.latent.extent(1),
                           args.latent.stride(0));
  const bool roped = args.rope.data != nullptr;
  if (roped) {
    if (!args.key) return Status::invalid("rope.data", "a key to hold it; sides", 1, 0);
    if (args.rope.extent(0) != tokens)
      return Status::invalid("rope.extent(0)", "equal to latent.extent(0)", tokens,
                             args.rope.extent(0));
    if (args.rope.extent(1) < 1 || args.rope.extent(1) > 65536)
      return Status::invalid("rope.extent(1)", "from 1 to", 65536, args.rope.extent(1));
    if (args.rope.stride(1) != 1)
      return Status::invalid("rope.stride(1)", "equal to", 1, args.rope.stride(1));
    if (args.rope.stride(0) < args.rope.extent(1))
      return Status::invalid("rope.stride(0)", "at least rope.extent(1)", args.rope.extent(1),
                             args.rope.stride(0));
  }
  if (args.key)
    if (Status s =
            detail::check_side(*args.key, true, tokens, args.latent.extent(1), args.rope_width());
        !s.ok())
      return s;
  if (args.value)
    if (Status s = detail::check_side(*args.value, false, tokens, args.latent.extent(1), 0);
        !s.ok())
      return s;
  if (tokens == 0) return {};
  if (args.latent.data == nullptr) return Status::invalid("latent.data", "not null, unlike", 0, 0);
  if (sizeof(T) == 4) return {};

  // The 16-bit kernels move 16 bytes at a time.
  if (args.latent.stride(0) % 8 != 0)
    return Status::invalid("latent.stride(0)", "a multiple of", 8, args.latent.stride(0));
  if (detail::misalignment(args.latent.data, 16))
    return Status::invalid("latent.data modulo 16", "equal to", 0,
                           detail::misalignment(args.latent.data, 16));
  if (!roped) return {};
  if (args.rope.extent(1) % 8 != 0)
    return Status::invalid("rope.extent(1)", "a multiple of", 8, args.rope.extent(1));
  if (args.rope.stride(0) % 8 != 0)
    return Status::invalid("rope.stride(0)", "a multiple of", 8, args.rope.stride(0));
  if (detail::misalignment(args.rope.data, 16))
    return Status::invalid("rope.data modulo 16", "equal to", 0,
                           detail::misalignment(args.rope.data, 16));
  return {};
}

}  // namespace bda::inline v0::cuda
