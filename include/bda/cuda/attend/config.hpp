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
  kRows,     // any device: up to 4 rows a CTA on the plain cores, the keys split over CTAs
  kSm90Tile  // sm_90a: tiles of 128 queries by wgmma
};

[[nodiscard]] constexpr const char* name_of(AttendKernel kernel) {
  constexpr std::array names{"rows", "sm90_tile"};
  return names[static_cast<std::size_t>(kernel)];
}

struct AttendConfig {
  AttendKernel kernel = AttendKernel::kRows;
  int splits = 1;        // parts of the keys (rows)
  const char* why = "";  // a literal
};

namespace detail {

constexpr std::int64_t kAttendTile = 64;     // keys a CTA of `rows` takes at a time
constexpr std::int64_t kAttendSplits = 128;  // at most

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

}  // namespace detail

[[nodiscard]] constexpr Status validate(const AttendConfig& config, const AttendShape&,
                                        const DeviceInfo& device) {
  if (config.kernel == AttendKernel::kSm90Tile && !device.wgmma)
    return Status::error(Status::Code::kUnsupported, "compute capability",
                         "9.0 with code built for sm_90a", 9, device.major);
  const std::int64_t most = config.kernel == AttendKernel::kRows ? detail::kAttendSplits : 1;
  if (config.splits < 1 || config.splits > most)
    return Status::error(Status::Code::kUnsupported, "config.splits", "from 1 to", most,
                         config.splits);
  if (device.major < 8)
    return Status::error(Status::Code::kUnsupported, "compute capability", "at least", 8,
                         device.major);
  return {};
}

/// The faster kernel; the result passes `validate` on devices of compute capability 8.0 or more.
[[nodiscard]] constexpr AttendConfig pick(const AttendShape& s, const DeviceInfo& device) {
  const int splits = detail::rows_splits(s, device);
  if (s.rows() <= 16)
    return {AttendKernel::kRows, splits, "few rows a key: bound by reading the cache"};
  if (!device.wgmma)
    return {AttendKernel::kRows, splits, "no sm_90a device, or no code for it: no tensor cores"};
  return {AttendKernel::kSm90Tile, 1, "many rows a key: bound by the products"};
}

}  // namespace bda::inline v0::cuda
