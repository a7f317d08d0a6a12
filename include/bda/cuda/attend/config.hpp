#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "bda/core/dtype.hpp"
#include "bda/core/status.hpp"
#include "bda/cuda/projection/config.hpp"

/// Which kernel attends, and in how many parts: pure host arithmetic.
namespace bda::inline v0::cuda {

struct AttendShape {
  DType dtype = DType::kF16;
  std::int64_t batch = 0, queries = 0, keys = 0;
  std::int64_t heads = 0, kv_heads = 0;
  std::int64_t qk_width = 0, v_width = 0;

  [[nodiscard]] constexpr std::int64_t group() const { return heads / kv_heads; }
  /// Rows of scores that read the same keys and values.
  [[nodiscard]] constexpr std::int64_t rows() const { return queries * group(); }
};

enum class AttendKernel {
  kRows,       // any device: up to 4 rows a CTA on the plain cores, the keys split over CTAs
  kSm90Tile,   // sm_90a: tiles of 128 queries by wgmma
  kSm90Latent  // sm_90a: the values are the keys' first channels, read once; the keys split
};

[[nodiscard]] constexpr const char* name_of(AttendKernel kernel) {
  constexpr std::array names{"rows", "sm90_tile", "sm90_latent"};
  return names[static_cast<std::size_t>(kernel)];
}

struct AttendConfig {
  AttendKernel kernel = AttendKernel::kRows;
  int splits = 1;        // parts of the keys (rows, sm90_latent)
  const char* why = "";  // a literal
};

namespace detail {

constexpr std::int64_t kAttendTile = 64;     // keys a CTA of `rows` takes at a time
constexpr std::int64_t kAttendSplits = 128;  // at most

constexpr std::int64_t kAttendWidth = 192;  // of the kernels but sm90_latent
constexpr std::int64_t kLatentKeyWidth = 576, kLatentValueWidth = 512;

/// Rows a CTA of `rows` takes.
constexpr std::int64_t attend_rows(const AttendShape& s) { return s.rows() > 1 ? 4 : 1; }

/// As many parts as give every multiprocessor about eight CTAs, of at least four tiles.
constexpr int rows_splits(const AttendShape& s, const DeviceInfo& device) {
  const std::int64_t ctas =
      std::max<std::int64_t>(s.batch * s.kv_heads * ceil_div(s.rows(), attend_rows(s)), 1);
  const std::int64_t wanted = ceil_div(8 * std::max(device.multiprocessors, 1), ctas);
  const std::int64_t most = std::max<std::int64_t>(s.keys / (4 * kAttendTile), 1);
  return static_cast<int>(std::min({wanted, most, kAttendSplits}));
}

/// A CTA a multiprocessor: the parts that make the waves of CTAs least work in all, where a part
/// costs about four tiles beside its own.
constexpr int latent_splits(const AttendShape& s, const DeviceInfo& device) {
  const std::int64_t ctas = std::max<std::int64_t>(
      s.batch * s.queries * s.kv_heads * ceil_div(s.group(), kAttendTile), 1);
  const std::int64_t tiles = ceil_div(s.keys, kAttendTile);
  const std::int64_t sms = std::max(device.multiprocessors, 1);
  std::int64_t best = 1, least = 0;
  for (std::int64_t splits = 1; splits <= std::min<std::int64_t>(kAttendSplits, tiles); ++splits) {
    const std::int64_t work = ceil_div(ctas * splits, sms) * (ceil_div(tiles, splits) + 4);
    if (splits == 1 || work < least) {
      best = splits;
      least = work;
    }
  }
  return static_cast<int>(best);
}

}  // namespace detail

[[nodiscard]] constexpr Status validate(const AttendConfig& config, const AttendShape& s,
                                        const DeviceInfo& device) {
  if (config.kernel != AttendKernel::kRows && !device.wgmma)
    return Status::error(Status::Code::kUnsupported, "compute capability",
                         "9.0 with code built for sm_90a", 9, device.major);
  if (config.kernel != AttendKernel::kSm90Latent &&
      std::max(s.qk_width, s.v_width) > detail::kAttendWidth)
    return Status::error(Status::Code::kUnsupported, "q.extent(3), v.extent(3)",
                         "but for sm90_latent at most", detail::kAttendWidth,
                         std::max(s.qk_width, s.v_width));
  const std::int64_t most = config.kernel == AttendKernel::kSm90Tile ? 1 : detail::kAttendSplits;
  if (config.splits < 1 || config.splits > most)
    return Status::error(Status::Code::kUnsupported, "config.splits", "from 1 to", most,
                         config.splits);
  if (device.major < 8)
    return Status::error(Status::Code::kUnsupported, "compute capability", "at least", 8,
                         device.major);
  return {};
}

/// The faster kernel; the result passes `validate` on devices of compute capability 8.0 or more,
/// and for widths beyond 192 where there is wgmma.
[[nodiscard]] constexpr AttendConfig pick(const AttendShape& s, const DeviceInfo& device) {
  if (std::max(s.qk_width, s.v_width) > detail::kAttendWidth)
    return {AttendKernel::kSm90Latent, detail::latent_splits(s, device),
            "wide heads: values that are part of their keys"};
  const int splits = detail::rows_splits(s, device);
  if (s.rows() <= 16)
    return {AttendKernel::kRows, splits, "few rows a key: bound by reading the cache"};
  if (!device.wgmma)
    return {AttendKernel::kRows, splits, "no sm_90a device, or no code for it: no tensor cores"};
  return {AttendKernel::kSm90Tile, 1, "many rows a key: bound by the products"};
}

}  // namespace bda::inline v0::cuda
