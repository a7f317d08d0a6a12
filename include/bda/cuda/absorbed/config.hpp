#pragma once

#include <array>
#include <cstdint>

#include "bda/core/dtype.hpp"
#include "bda/core/status.hpp"
#include "bda/cuda/projection/config.hpp"

/// Which kernel computes a product of absorbed decoding: pure host code, tested without a GPU.
namespace bda::inline v0::cuda {

/// The two products, each head by its own C_h [rest, width].
enum class AbsorbedProduct {
  kQuery,   // [tokens, heads, width] to [tokens, heads, kv_dim]: x at S, x C_h^T at rest
  kOutput,  // [tokens, heads, kv_dim] to [tokens, heads, width]: x_S + x_rest C_h (+ b_h)
};

struct AbsorbedShape {
  AbsorbedProduct product = AbsorbedProduct::kQuery;
  DType dtype = DType::kF16;
  std::int64_t tokens = 0;
  std::int64_t kv_dim = 0;
  std::int64_t width = 0;
  std::int64_t heads = 0;
  std::int64_t basis_begin = 0;

  [[nodiscard]] constexpr std::int64_t rest() const { return kv_dim - width; }
};

enum class AbsorbedKernel {
  kSimt,  // any type, shape and device, fp32 arithmetic
  kSm90,  // sm_90a: a CTA has its whole part of a head's C in flight at once
};

[[nodiscard]] constexpr const char* name_of(AbsorbedKernel kernel) {
  constexpr std::array names{"simt", "sm90"};
  return names[static_cast<std::size_t>(kernel)];
}

/// The choice, reported to the caller; hand one to `AbsorbedArguments::force` to overrule it.
struct AbsorbedConfig {
  AbsorbedKernel kernel = AbsorbedKernel::kSimt;
  int tile_tokens = 0;
  int tile_blocks = 1;   // of 64 output channels a CTA computes (sm90)
  const char* why = "";  // a literal
};

namespace detail {

/// Of 64 channels: how many a head's output has to compute, and how many each of them sums over.
constexpr std::int64_t absorbed_blocks(const AbsorbedShape& s) {
  return (s.product == AbsorbedProduct::kQuery ? s.rest() : s.width) / 64;
}
constexpr std::int64_t absorbed_depth(const AbsorbedShape& s) {
  return (s.product == AbsorbedProduct::kQuery ? s.width : s.rest()) / 64;
}

/// Shared memory of the sm90 kernel: C, x, the output (and before it the basis), barriers.
constexpr std::int64_t absorbed_shared_bytes(const AbsorbedShape& s, int tile_tokens,
                                             int tile_blocks) {
  const std::int64_t depth = absorbed_depth(s), rows = std::int64_t{tile_tokens} * 128;
  return depth * (tile_blocks * 8192 + rows) + tile_blocks * rows + depth * 8;
}

/// Chunks of C that the sm90 kernel asks for before x, two thirds: more, and x queues behind
/// memory; fewer, and memory idles while x comes.
constexpr int absorbed_ahead(const AbsorbedShape& s) {
  return static_cast<int>((2 * absorbed_depth(s) + 1) / 3);
}

constexpr int kMostAbsorbedBlocks = 3;  // one warpgroup each

}  // namespace detail

/// Whether `config` can compute `shape` on `device`; the Status names what does not fit.
[[nodiscard]] constexpr Status validate(const AbsorbedConfig& config, const AbsorbedShape& shape,
                                        const DeviceInfo& device) {
  const auto unsupported = [](const char* what, const char* rule, std::int64_t want,
                              std::int64_t got) {
    return Status::error(Status::Code::kUnsupported, what, rule, want, got);
  };
  if (config.kernel == AbsorbedKernel::kSimt) return {};
  if (shape.dtype != DType::kF16 && shape.dtype != DType::kBF16)
    return unsupported("config.kernel sm90: bytes of an element", "2 (fp16 or bf16)", 2,
                       size_of(shape.dtype));
  if (!device.wgmma)
    return unsupported("compute capability", "9.0 with code built for sm_90a", 9, device.major);
  if (shape.width % 64 != 0) return unsupported("width", "a multiple of (sm90)", 64, shape.width);
  if (shape.rest() % 64 != 0) return unsupported("rest", "a multiple of (sm90)", 64, shape.rest());
  if (shape.basis_begin % 64 != 0)
    return unsupported("basis_begin", "a multiple of (sm90)", 64, shape.basis_begin);
  if (config.tile_tokens != 16 && config.tile_tokens != 32 && config.tile_tokens != 64)
    return unsupported("config.tile_tokens", "16, 32 or", 64, config.tile_tokens);
  if (config.tile_blocks < 1 || config.tile_blocks > detail::kMostAbsorbedBlocks)
    return unsupported("config.tile_blocks", "from 1 to", detail::kMostAbsorbedBlocks,
                       config.tile_blocks);
  if (detail::absorbed_blocks(shape) % config.tile_blocks != 0)
    return unsupported("config.tile_blocks", "a divisor of a head's blocks",
                       detail::absorbed_blocks(shape), config.tile_blocks);
  const std::int64_t bytes =
      detail::absorbed_shared_bytes(shape, config.tile_tokens, config.tile_blocks);
  if (bytes > device.shared_bytes)
    return unsupported("shared memory of absorbed sm90", "at most", device.shared_bytes, bytes);
  return {};
}

/// The fastest kernel for `shape` on `device`. Assumes checked arguments; the result passes
/// `validate`.
[[nodiscard]] constexpr AbsorbedConfig pick(const AbsorbedShape& shape, const DeviceInfo& device) {
  AbsorbedConfig config{AbsorbedKernel::kSm90,
                        shape.tokens <= 16   ? 16
                        : shape.tokens <= 32 ? 32
                                             : 64,
                        1, "bound by streaming C, all of it in flight at once"};
  if (Status fits = validate(config, shape, device); !fits.ok())
    return {AbsorbedKernel::kSimt, 8, 1, fits.argument()};  // why: what does not fit
  // A head's blocks share x: with many tokens it pays to fetch it once, where enough CTAs remain.
  AbsorbedConfig wider = config;
  wider.tile_blocks = shape.product == AbsorbedProduct::kQuery ? 3 : 2;
  const std::int64_t ctas = shape.heads * detail::ceil_div(shape.tokens, config.tile_tokens) *
                            detail::absorbed_blocks(shape) / wider.tile_blocks;
  const int least = shape.product == AbsorbedProduct::kQuery ? 32 : 64;  // tokens
  if (config.tile_tokens >= least && 4 * ctas >= 3 * device.multiprocessors &&
      validate(wider, shape, device).ok())
    return wider;
  return config;
}

}  // namespace bda::inline v0::cuda
