#pragma once

#include <cstdint>
#include <optional>

#include "bda/core/status.hpp"
#include "bda/core/tensor_view.hpp"
#include "bda/cuda/attend/config.hpp"
#include "bda/cuda/checks.hpp"
#include "bda/cuda/projection/arguments.hpp"

/// What the built-in attention step takes.
namespace bda::inline v0::cuda {

/// out[b, i, h] = softmax over the visible keys j of (scale q[b, i, h] . k[b, j, h / group]) times
/// v[b, j, h / group].
///
/// Query i has position p = i + keys - queries. Key j is visible where j < key_lengths[b], where
/// causal j <= p, and with a window p - j < window. A query that sees no key gets zeros. All data
/// is on the device; the last stride of every view is 1, the others multiples of 8 elements, every
/// pointer is aligned to 16 bytes. Widths are at most 192, but where the values are the first
/// channels of their keys (v.data and strides as k's: absorbed decoding over latents), on sm_90a:
/// there up to 576 and 512.
template <class T>
struct AttendArguments {
  TensorView<const T, 4> q{};  // [batch, queries, heads, qk width]
  TensorView<const T, 4> k{};  // [batch, keys, kv_heads, qk width]
  TensorView<const T, 4> v{};  // [batch, keys, kv_heads, v width]
  TensorView<T, 4> out{};      // [batch, queries, heads, v width]
  float scale = 1;
  float softcap = 0;  // s -> softcap tanh(s / softcap); 0 for none
  bool causal = true;
  std::int64_t window = 0;                    // 0 for no limit
  const std::int32_t* key_lengths = nullptr;  // [batch], or null: all keys
  const float* sinks = nullptr;               // [heads] logits of a key without a value, or null
  bool dependent_launch = false;
  std::optional<AttendConfig> force{};

  /// Whether a value is the first channels of its key.
  [[nodiscard]] bool values_in_keys() const {
    return v.data == k.data && v.strides == k.strides && v.data != nullptr;
  }
  [[nodiscard]] AttendShape shape() const {
    return {Element<T>::dtype, q.extent(0), q.extent(1), k.extent(1),
            q.extent(2),       k.extent(2), q.extent(3), v.extent(3)};
  }
};

/// Everything about `args` that can be checked without a device.
template <class T>
[[nodiscard]] Status check_arguments(const AttendArguments<T>& args) {
  constexpr std::int64_t kLargest = 0x7fffffff;
  const AttendShape s = args.shape();
  if (s.batch < 0 || s.batch > 65535)
    return Status::invalid("q.extent(0)", "from 0 to", 65535, s.batch);
  if (s.queries < 0 || s.queries > kLargest)
    return Status::invalid("q.extent(1)", "from 0 to", kLargest, s.queries);
  if (s.heads < 1 || s.heads > 65535)
    return Status::invalid("q.extent(2)", "from 1 to", 65535, s.heads);
  if (s.keys < 0 || s.keys > kLargest)
    return Status::invalid("k.extent(1)", "from 0 to", kLargest, s.keys);
  if (s.kv_heads < 1 || s.heads % s.kv_heads != 0)
    return Status::invalid("k.extent(2)", "a divisor of q.extent(2)", s.heads, s.kv_heads);
  const bool latent = args.values_in_keys();
  if (const std::int64_t most = latent ? detail::kLatentKeyWidth : detail::kAttendWidth;
      s.qk_width < 8 || s.qk_width > most || s.qk_width % 8 != 0)
    return Status::invalid("q.extent(3)", "a multiple of 8 from 8 to", most, s.qk_width);
  if (const std::int64_t most = latent ? detail::kLatentValueWidth : detail::kAttendWidth;
      s.v_width < 8 || s.v_width > most || s.v_width % 8 != 0)
    return Status::invalid("v.extent(3)", "a multiple of 8 from 8 to", most, s.v_width);
  if (latent && s.v_width > s.qk_width)
    return Status::invalid("v.extent(3)", "part of the keys: at most", s.qk_width, s.v_width);
  if (!latent && args.force && args.force->kernel == AttendKernel::kSm90Latent)
    return Status::invalid("v.data", "that of k, for sm90_latent, and its strides, unlike", 0, 0);
  if (s.v_width > (s.qk_width + 63) / 64 * 64)
    return Status::invalid("v.extent(3)", "at most q.extent(3), rounded up to 64",
                           (s.qk_width + 63) / 64 * 64, s.v_width);
  const auto equal = [](const char* what, std::int64_t want, std::int64_t got) {
    return want == got ? Status{} : Status::invalid(what, "equal to", want, got);
  };
  for (const Status& status : {equal("k.extent(0)", s.batch, args.k.extent(0)),
                               equal("k.extent(3)", s.qk_width, args.k.extent(3)),
                               equal("v.extent(0)", s.batch, args.v.extent(0)),
                               equal("v.extent(1)", s.keys, args.v.extent(1)),
                               equal("v.extent(2)", s.kv_heads, args.v.extent(2)),
                               equal("out.extent(0)", s.batch, args.out.extent(0)),
                               equal("out.extent(1)", s.queries, args.out.extent(1)),
                               equal("out.extent(2)", s.heads, args.out.extent(2)),
                               equal("out.extent(3)", s.v_width, args.out.extent(3))})
    if (!status.ok()) return status;
  if (!(args.scale > 0)) return Status::invalid("scale", "positive, unlike", 0, 0);
  if (!(args.softcap >= 0)) return Status::invalid("softcap", "at least", 0, -1);
  if (args.window < 0 || args.window > kLargest)
    return Status::invalid("window", "from 0 to", kLargest, args.window);
  if (s.batch == 0 || s.queries == 0) return {};

  const auto check_view = [](const auto& view, const char* const(&names)[5]) {
    if (view.data == nullptr) return Status::invalid(names[0], "not null, unlike", 0, 0);
    if (view.stride(3) != 1) return Status::invalid(names[4], "equal to", 1, view.stride(3));
    for (int i = 0; i < 3; ++i)
      if (view.stride(i) % 8 != 0 || view.stride(i) < 0)
        return Status::invalid(names[1 + i], "a multiple of", 8, view.stride(i));
    if (const std::int64_t rest = detail::misalignment(view.data, 16); rest != 0)
      return Status::invalid(names[0], "a multiple of 16 bytes, modulo 16", 0, rest);
    return Status{};
  };
  if (Status c = check_view(args.q,
                            {"q.data", "q.stride(0)", "q.stride(1)", "q.stride(2)", "q.stride(3)"});
      !c.ok())
    return c;
  if (Status c = check_view(args.out, {"out.data", "out.stride(0)", "out.stride(1)",
                                       "out.stride(2)", "out.stride(3)"});
      !c.ok())
    return c;
  if (s.keys == 0) return {};
  if (Status c = check_view(args.k,
                            {"k.data", "k.stride(0)", "k.stride(1)", "k.stride(2)", "k.stride(3)"});
      !c.ok())
    return c;
  return check_view(args.v, {"v.data", "v.stride(0)", "v.stride(1)", "v.stride(2)", "v.stride(3)"});
}

}  // namespace bda::inline v0::cuda
