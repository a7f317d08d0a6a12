#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

#include "bda/core/dtype.hpp"
#include "bda/core/status.hpp"
#include "bda/cuda/projection/packing.hpp"

/// Which kernel computes a projection, and in which tiles: pure host arithmetic, tested without a
/// GPU.
namespace bda::inline v0::cuda {

struct ProjectionShape {
  DType dtype = DType::kF16;
  std::int64_t tokens = 0;       // M
  std::int64_t kv_dim = 0;       // d
  std::int64_t width = 0;        // r
  std::int64_t heads = 0;        // n
  std::int64_t basis_begin = 0;  // S = [basis_begin, basis_begin + width)

  [[nodiscard]] constexpr std::int64_t rest() const { return kv_dim - width; }
  [[nodiscard]] constexpr std::int64_t columns() const { return heads * width; }
};

/// What the choice needs to know of a device; `query_device` fills it in.
struct DeviceInfo {
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  int shared_bytes = 0;  // the most one block may ask for
  bool wgmma = false;    // the binary holds sm_90a code, and the device runs it
};

enum class ProjectionKernel {
  kSimt,          // fp32, any device
  kSm80,          // fp16 and bf16, cp.async and mma.sync, sm_80 and up
  kSm80Resident,  // the same, x stays in shared memory over the heads
  kSm90Small,     // sm_90a, one wave of tiles: as much of C and x in flight at once as fits
  kSm90Turns,   // sm_90a, up to 384 rest channels, one wave: x stays, two blocks of columns in turn
  kSm90Short,   // sm_90a, width 128 and 384 rest channels, one wave: x stays over a few half heads
  kSm90Wave,    // sm_90a, one wave of tiles of 256 x 128 or 128 x 192: C as fast as memory gives it
  kSm90Stream,  // sm_90a, any depth: x and C stream through one ring
  kSm90Halves,  // sm_90a, from 320 rest channels: the halves of a tile end at different times
  kSm90Resident,  // sm_90a, width 128 and 384 rest channels: x stays in registers over the heads
};

[[nodiscard]] constexpr const char* name_of(ProjectionKernel kernel) {
  constexpr std::array names{"simt",        "sm80",         "sm80_resident", "sm90_small",
                             "sm90_turns",  "sm90_short",   "sm90_wave",     "sm90_stream",
                             "sm90_halves", "sm90_resident"};
  return names[static_cast<std::size_t>(kernel)];
}

/// The choice, reported to the caller; hand one to `ProjectionArguments::force` to overrule it.
struct ProjectionConfig {
  ProjectionKernel kernel = ProjectionKernel::kSimt;
  int tile_tokens = 0;
  int tile_columns = 0;
  int splits = 1;        // of the rest channels, over a cluster (sm90_small)
  const char* why = "";  // a literal
};

namespace detail {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// The copy engine and wgmma want whole tiles of 64 channels and no tile across the edge of S.
constexpr bool fits_sm90(const ProjectionShape& s) {
  return s.dtype != DType::kF32 && s.dtype != DType::kF64 && (s.width == 64 || s.width == 128) &&
         s.rest() > 0 && s.rest() % 64 == 0 && s.basis_begin % 64 == 0;
}

/// Shared memory of sm90_small: `slots` of C and x, the basis (then the output), the other splits'
/// partial sums, barriers.
constexpr std::int64_t small_shared_bytes(std::int64_t slots, int tile_tokens, int tile_columns,
                                          int splits) {
  const std::int64_t groups = tile_columns / 64, block = std::int64_t{tile_tokens} * 128;
  const std::int64_t partials =
      (splits - 1) * ceil_div(tile_tokens / 16, splits) * groups * (16 * 64 * 4);
  return slots * (groups * 8192 + block) + groups * block + partials + (2 * slots + 2) * 8;
}

/// The most shared memory for a CTA that has a multiprocessor to itself, and for each of two.
constexpr std::int64_t kSharedBytesOfOne = 220 * 1024, kSharedBytesOfTwo = 112 * 1024;

/// Tiles of `tokens` x `columns` that cover the output.
constexpr std::int64_t tile_count(const ProjectionShape& s, int tokens, int columns) {
  return ceil_div(s.tokens, tokens) * ceil_div(s.columns(), columns);
}

/// Slots of sm90_small: the whole slice of C at once where one CTA a multiprocessor can hold it;
/// else a ring that lets two CTAs share a multiprocessor, or as long as one can be where there is
/// no second. Splits always get the former: a cluster that needs whole multiprocessors leaves some
/// of each GPC idle.
constexpr int small_slots(const ProjectionShape& s, const ProjectionConfig& c,
                          const DeviceInfo& device) {
  const std::int64_t slice = ceil_div(ceil_div(s.rest(), 64), c.splits);
  const auto bytes = [&](std::int64_t slots) {
    return small_shared_bytes(slots, c.tile_tokens, c.tile_columns, c.splits);
  };
  if (c.splits == 1 && bytes(slice) <= kSharedBytesOfOne) return static_cast<int>(slice);
  const bool alone =
      c.splits == 1 && tile_count(s, c.tile_tokens, c.tile_columns) <= device.multiprocessors;
  const std::int64_t most = alone ? kSharedBytesOfOne : kSharedBytesOfTwo;
  std::int64_t slots = std::min<std::int64_t>(slice, 2);  // one is only given back for the next
  while (slots < slice && bytes(slots + 1) <= most) ++slots;
  return static_cast<int>(slots);
}

/// Chunks of C that sm90_small asks for before x. What comes from memory and what comes from L2
/// queue in one line: with all of C ahead x is the last to come, and all products wait for it; with
/// none, memory idles while x comes. A dependent launch has the time for more of it.
constexpr int small_ahead(const ProjectionShape& s, const ProjectionConfig& c, bool dependent) {
  const std::int64_t slice = ceil_div(ceil_div(s.rest(), 64), c.splits), half = ceil_div(slice, 2);
  const bool large = c.tile_tokens > 64;
  if (!dependent) return static_cast<int>(std::min<std::int64_t>(half, large ? 2 : 3));
  return static_cast<int>(large ? std::min<std::int64_t>(half, 4)
                                : std::clamp<std::int64_t>(slice - 2, 1, 8));
}

/// Rows of `parts` parts that share `tokens` evenly: the copy engine is slow over boxes that reach
/// beyond the last token (160 of 128 heads: 9.7 us in tiles of 128 and 32, 8.0 in two of 80).
constexpr int even_rows(std::int64_t tokens, std::int64_t parts, std::int64_t step) {
  return static_cast<int>(ceil_div(ceil_div(tokens, parts), step) * step);
}

/// Rows of a tile of sm90_small.
constexpr int small_rows(const ProjectionShape& s, const ProjectionConfig& c) {
  return even_rows(s.tokens, ceil_div(s.tokens, c.tile_tokens), c.splits > 1 ? 16 : 8);
}

constexpr int kMaxCluster = 8;  // the portable limit

/// Tokens of the tiles of sm90_small.
constexpr std::array kSmallTokens{16, 32, 64, 96, 128, 144, 160};

/// Tiles of tokens of sm90_turns: as many as one wave has room for, as long as each 128 rows of a
/// tile then have 64 tokens or more.
constexpr std::int64_t turns_token_tiles(const ProjectionShape& s, int tile_tokens,
                                         const DeviceInfo& device) {
  const std::int64_t room = device.multiprocessors / ceil_div(s.columns(), 128);
  return std::max(ceil_div(s.tokens, tile_tokens),
                  std::min(room, ceil_div(s.tokens, tile_tokens / 2)));
}

/// Rows that each 128 of a tile take.
constexpr int turns_rows(const ProjectionShape& s, int tile_tokens, const DeviceInfo& device) {
  return even_rows(s.tokens, turns_token_tiles(s, tile_tokens, device) * (tile_tokens / 128), 8);
}

/// Ranges that each row block is cut into for the CTAs of sm90_resident, as evenly as can be: no
/// CTA has rows of two row blocks then, and those that read the same part of C do so at the same
/// time. 0 where there are more row blocks than CTAs, and where ranges that run on from one row
/// block into the next are better, whose CTAs change their rows at different times:
///   where the longest range would be more than a thirty-second longer ((512,128,128), 8192 tokens:
///     64 heads in place of 63, 150 to 144 us);
///   where it would be longer and a whole row block (16384 tokens: 128, not 125, 314 to 332 us).
constexpr std::int64_t aligned_ranges(std::int64_t row_blocks, std::int64_t heads,
                                      std::int64_t ctas) {
  if (row_blocks < 1 || row_blocks > ctas) return 0;
  const std::int64_t least = ceil_div(row_blocks * heads, ctas);
  const std::int64_t length = ceil_div(heads, std::min(ctas / row_blocks, heads));
  if (32 * (length - least) > least || (length > least && length == heads)) return 0;
  return ceil_div(heads, length);
}

/// How sm90_short cuts the output for one wave of CTAs: row blocks of `rows` tokens, each in
/// `ranges` of up to `units` half heads; one range each, and more than one wave, where there are
/// more row blocks than multiprocessors.
struct ShortCut {
  std::int64_t row_blocks, ranges, units;
  int rows;

  [[nodiscard]] constexpr std::int64_t ctas() const { return row_blocks * ranges; }
};
constexpr ShortCut short_cut(const ProjectionShape& s, const DeviceInfo& device) {
  const std::int64_t row_blocks = std::max<std::int64_t>(ceil_div(s.tokens, 128), 1);
  const std::int64_t most = std::max<std::int64_t>(device.multiprocessors / row_blocks, 1);
  const std::int64_t units = ceil_div(2 * s.heads, most);
  return {row_blocks, ceil_div(2 * s.heads, units), units, even_rows(s.tokens, row_blocks, 16)};
}

/// Shared memory of sm80_resident: 128 rows of x in blocks of 64 rest and 64 basis channels, and
/// two rings of three times 64 channels x 128 columns.
constexpr std::int64_t sm80_resident_shared_bytes(const ProjectionShape& s) {
  return (ceil_div(s.rest(), 64) + ceil_div(s.width, 64) + 2 * 3) * (128 * 128);
}

}  // namespace detail

/// Whether `config` can compute `shape` on `device`; the Status names what does not fit.
[[nodiscard]] constexpr Status validate(const ProjectionConfig& config,
                                        const ProjectionShape& shape, const DeviceInfo& device) {
  const auto unsupported = [](const char* what, const char* rule, std::int64_t want,
                              std::int64_t got) {
    return Status::error(Status::Code::kUnsupported, what, rule, want, got);
  };
  const auto tile = [&](std::int64_t tokens, std::int64_t columns) {
    if (config.tile_tokens != tokens)
      return unsupported("config.tile_tokens", "this kernel's tile", tokens, config.tile_tokens);
    if (config.tile_columns != columns)
      return unsupported("config.tile_columns", "this kernel's tile", columns, config.tile_columns);
    return Status{};
  };
  // A CTA for each tile, in dimensions of the grid that have no more.
  const auto one_wave = [&](const Status& tile_status) {
    if (!tile_status.ok()) return tile_status;
    const std::int64_t tiles = detail::tile_count(shape, config.tile_tokens, config.tile_columns);
    return tiles <= 65535 ? Status{} : unsupported("tiles of out", "at most", 65535, tiles);
  };
  if (config.kernel == ProjectionKernel::kSimt) {
    if (shape.dtype != DType::kF32)
      return unsupported("config.kernel simt: bytes of an element", "4 (fp32)", 4,
                         size_of(shape.dtype));
    return tile(64, 64);
  }
  if (shape.dtype != DType::kF16 && shape.dtype != DType::kBF16)
    return unsupported("config.kernel: bytes of an element", "2 (fp16 or bf16)", 2,
                       size_of(shape.dtype));
  const bool resident = config.kernel == ProjectionKernel::kSm80Resident;
  if (resident || config.kernel == ProjectionKernel::kSm80) {
    if (device.major < 8)
      return unsupported("compute capability", "at least 8 for fp16 and bf16", 8, device.major);
    if (const std::int64_t bytes = detail::sm80_resident_shared_bytes(shape);
        resident && bytes > device.shared_bytes)
      return unsupported("shared memory of sm80_resident", "at most", device.shared_bytes, bytes);
    return tile(128, 128);
  }
  if (!device.wgmma)
    return unsupported("compute capability", "9.0 with code built for sm_90a", 9, device.major);
  if (!detail::fits_sm90(shape))
    return unsupported("width, rest and basis_begin",
                       "width 64 or 128, rest and basis_begin in multiples of 64", 64,
                       shape.basis_begin % 64 != 0 ? shape.basis_begin
                       : shape.rest() % 64 != 0    ? shape.rest()
                                                   : shape.width);
  switch (config.kernel) {
    case ProjectionKernel::kSm90Resident:
      if (shape.width != 128) return unsupported("width", "128 (sm90_resident)", 128, shape.width);
      if (shape.rest() != 384) return unsupported("rest", "384 (sm90_resident)", 384, shape.rest());
      return tile(128, 128);
    case ProjectionKernel::kSm90Short:
      if (shape.width != 128) return unsupported("width", "128 (sm90_short)", 128, shape.width);
      if (shape.rest() != 384) return unsupported("rest", "384 (sm90_short)", 384, shape.rest());
      return tile(128, 64);
    case ProjectionKernel::kSm90Turns:
      if (shape.rest() > 384)
        return unsupported("rest", "at most 384 (sm90_turns)", 384, shape.rest());
      return one_wave(config.tile_tokens == 256 ? tile(256, 128) : tile(128, 128));
    case ProjectionKernel::kSm90Wave:
      return one_wave(config.tile_tokens == 128 ? tile(128, 192) : tile(256, 128));
    case ProjectionKernel::kSm90Stream:
      if (config.tile_columns != 128 && config.tile_columns != 192)
        return unsupported("config.tile_columns", "128 or", 192, config.tile_columns);
      return tile(128, config.tile_columns);
    case ProjectionKernel::kSm90Halves:
      if (shape.rest() < 320)
        return unsupported("rest", "at least (sm90_halves)", 320, shape.rest());
      return tile(128, 256);
    default: {
      const std::int64_t chunks = shape.rest() / 64;
      if (std::find(detail::kSmallTokens.begin(), detail::kSmallTokens.end(), config.tile_tokens) ==
          detail::kSmallTokens.end())
        return unsupported("config.tile_tokens", "16, 32, 64, 96, 128, 144 or", 160,
                           config.tile_tokens);
      if (config.tile_columns != 64 && config.tile_columns != 128)
        return unsupported("config.tile_columns", "64 or", 128, config.tile_columns);
      if (config.tile_tokens > 128 && config.tile_columns != 128)
        return unsupported("config.tile_columns with more than 128 tokens", "equal to", 128,
                           config.tile_columns);
      if (config.tile_tokens > 128 && config.splits != 1)
        return unsupported("config.splits with more than 128 tokens", "equal to", 1, config.splits);
      if (config.splits < 1 || config.splits > std::min<std::int64_t>(chunks, detail::kMaxCluster))
        return unsupported("config.splits", "from 1 to min(rest / 64, 8)",
                           std::min<std::int64_t>(chunks, detail::kMaxCluster), config.splits);
      const std::int64_t bytes =
          detail::small_shared_bytes(detail::small_slots(shape, config, device), config.tile_tokens,
                                     config.tile_columns, config.splits);
      if (bytes > device.shared_bytes)
        return unsupported("shared memory of sm90_small", "at most", device.shared_bytes, bytes);
      return one_wave({});
    }
  }
}

namespace detail {

/// A tile of sm90_stream or sm90_halves and its cost in cycles of an H100, measured: of the
/// products, how much more than their number says (power and the way from L2 count here); of every
/// tile's start and end; and once, until the first copies are there.
struct StreamTile {
  ProjectionKernel kernel;
  int columns;
  double per_product;
  int per_tile, once;
};
constexpr std::array<StreamTile, 3> kStreamTiles{{
    {ProjectionKernel::kSm90Halves, 256, 1.04, 2150, 4500},
    {ProjectionKernel::kSm90Stream, 192, 1.06, 2500, 3500},
    {ProjectionKernel::kSm90Stream, 128, 1.20, 1400, 3500},
}};

/// What the tiles take in whole rounds over the device; only the order of the estimates matters.
inline double stream_cycles(const ProjectionShape& s, const DeviceInfo& device,
                            const StreamTile& t) {
  const std::int64_t tiles = tile_count(s, 128, t.columns);
  const double rounds = static_cast<double>(ceil_div(tiles, device.multiprocessors));
  // A multiprocessor multiplies 64 x 256 x 16 in 128 cycles.
  const double products = 128 * t.columns / 2048.0 * static_cast<double>(s.rest());
  return rounds * (t.per_product * products + t.per_tile) + t.once;
}

inline ProjectionConfig pick_stream(const ProjectionShape& s, const DeviceInfo& device) {
  ProjectionConfig best;
  double least = std::numeric_limits<double>::infinity();
  for (const StreamTile& tile : kStreamTiles) {
    const ProjectionConfig config{
        tile.kernel, 128, tile.columns, 1,
        "x and C stream; the tile that fills the device's last round best"};
    const double cycles = stream_cycles(s, device, tile);
    if (cycles < least && validate(config, s, device).ok()) {
      best = config;
      least = cycles;
    }
  }
  return best;
}

/// x stays where it fits, several tiles of columns pass over it, and there is work for two groups
/// of warps everywhere.
inline ProjectionConfig pick_sm80(const ProjectionShape& s, const DeviceInfo& device,
                                  const char* why) {
  const ProjectionConfig resident{ProjectionKernel::kSm80Resident, 128, 128, 1, why};
  if (validate(resident, s, device).ok() && ceil_div(s.columns(), 128) >= 4 &&
      tile_count(s, 128, 128) >= 2 * device.multiprocessors)
    return resident;
  return {ProjectionKernel::kSm80, 128, 128, 1, why};
}

/// Whether x of one row block fits into the registers of a CTA: what sm90_short and sm90_resident
/// are for.
constexpr bool x_fits_registers(const ProjectionShape& s) {
  return s.width == 128 && s.rest() == 384;
}

/// sm90_small, where its CTAs cover the output in one wave; else false. Measured on an H100 at 12
/// to 128 heads and 384 to 1920 rest channels.
inline bool pick_small(const ProjectionShape& s, const DeviceInfo& device, bool dependent,
                       ProjectionConfig& config) {
  config = {ProjectionKernel::kSm90Small, 16, 64, 1,
            "one wave: bound by bringing C and x, as much of both in flight as fits"};
  const std::int64_t most = device.multiprocessors;
  const bool deep = s.rest() / 64 > 12;
  const ShortCut cut = short_cut(s, device);
  if (s.tokens <= 64) {
    // Every token tile brings C anew: one, unless more leave half of the multiprocessors idle and C
    // is short.
    while (config.tile_tokens < s.tokens &&
           ((deep && config.tile_tokens < 32) || 2 * tile_count(s, config.tile_tokens, 64) > most))
      config.tile_tokens *= 2;
    // Splitting the channels pays where a CTA would have many of them to itself.
    if (deep && config.tile_tokens <= 32 && s.tokens <= config.tile_tokens &&
        3 * tile_count(s, config.tile_tokens, 64) <= most)
      config.splits = 3;
    return validate(config, s, device).ok();
  }
  // From the smallest tile up, which leaves each multiprocessor the least to multiply.
  constexpr int kTiles[][2] = {{32, 64},  {64, 64},   {96, 64},   {128, 64},
                               {96, 128}, {128, 128}, {144, 128}, {160, 128}};
  for (const auto& [tokens, columns] : kTiles) {
    if (tokens >= 2 * s.tokens || tile_count(s, tokens, columns) > most) continue;
    // Tiles so small bring too much of C, unless it is short.
    if (tokens == 32 && (s.tokens > 128 || deep)) continue;
    // Large ones bring C of all their columns before they store anything; the kernels that hold x,
    // where they do, are better
    if (tokens * columns > 128 * 64 && s.rest() <= 384) {
      // than 96 x 128 where its tiles fill three quarters of the device,
      if (tokens == 96 && 4 * tile_count(s, 128, 128) > 3 * most) return false;
      // than 128 x 128,
      if (tokens == 128) return false;
      // than 160 x 128, if a CTA has no more to multiply then than three half heads of 128 tokens,
      if (tokens == 160 && x_fits_registers(s) && cut.ctas() <= most &&
          cut.units * cut.rows <= 3 * 128)
        return false;
      // and launched early than all of them where one row of tiles is the whole.
      if (dependent && s.tokens <= tokens) return false;
    }
    config.tile_tokens = tokens;
    config.tile_columns = columns;
    if (validate(config, s, device).ok()) return true;
  }
  return false;
}

/// sm90_turns, where its tiles cover the output in one wave; else false. Measured on an H100 at 16
/// to 128 heads of width 128 with 384 rest channels, where sm90_short is ahead now; with fewer it
/// does the same, less of it.
inline bool pick_turns(const ProjectionShape& s, const DeviceInfo& device,
                       ProjectionConfig& config) {
  for (const int tokens : {128, 256}) {
    config = {ProjectionKernel::kSm90Turns, tokens, 128, 1,
              "one wave: x stays, one block of columns is stored while C of the other comes"};
    if (tile_count(s, tokens, 128) <= device.multiprocessors && validate(config, s, device).ok())
      return true;
  }
  return false;
}

/// sm90_wave, where sm90_turns cannot hold x, sm90_small's tiles do not cover the output in one
/// wave, and its own do; else false. Those of 256 x 128 where they fill more than half of the
/// device; and, above 256 tokens, where every row of tiles brings C, where pick_stream's choice,
/// `stream`, is sm90_halves; those of 128 x 192 where it is sm90_stream's. Measured on an H100
/// above 128 tokens: at 96 to 128 heads of width 128 and 240 of 64, with up to 1408 rest channels,
/// and at 12 to 32 heads of 700 to 5000 tokens.
inline bool pick_wave(const ProjectionShape& s, const DeviceInfo& device,
                      const ProjectionConfig& stream, ProjectionConfig& config) {
  const std::int64_t most = device.multiprocessors, tiles = tile_count(s, 256, 128);
  if (s.tokens <= 128) return false;
  if (tiles <= most && 2 * tiles > most &&
      (s.tokens <= 256 || stream.kernel == ProjectionKernel::kSm90Halves)) {
    config = {ProjectionKernel::kSm90Wave, 256, 128, 1,
              "one wave of 256 tokens: C is brought as fast as memory gives it"};
    return true;
  }
  config = {ProjectionKernel::kSm90Wave, 128, 192, 1,
            "one wave of 192 columns: half of the output is stored beside the other's products"};
  return stream.kernel == ProjectionKernel::kSm90Stream && stream.tile_columns == 192 &&
         tile_count(s, 128, 192) <= most;
}

/// sm90_turns, sm90_short or sm90_resident, for `x_fits_registers`, where sm90_small is not the
/// choice. Measured on an H100 at 8 to 128 heads.
inline ProjectionConfig pick_registers(const ProjectionShape& s, const DeviceInfo& device,
                                       bool dependent) {
  const std::int64_t most = std::max(device.multiprocessors, 1);
  // Launched early and with one block of 128 columns for each CTA, sm90_turns is ahead, unless one
  // row of its tiles fills the device: then C bounds, which sm90_short asks for faster.
  const bool one_row_fills = s.tokens <= 128 && 8 * tile_count(s, 128, 128) > 7 * most;
  ProjectionConfig turns;
  if (dependent && !one_row_fills && pick_turns(s, device, turns) && turns.tile_tokens == 128)
    return turns;
  // sm90_short starts and ends sooner, and sm90_resident loses less between two units. Ranges of
  // sm90_resident that run on into a second row block bring its rows too, which costs about what
  // two half heads do.
  const ShortCut cut = short_cut(s, device);
  const std::int64_t longest = 2 * ceil_div(cut.row_blocks * s.heads, most);  // of sm90_resident
  const bool aligned = aligned_ranges(cut.row_blocks, s.heads, most) > 0;
  if (cut.ctas() <= most && cut.units <= (aligned ? 12 : std::min<std::int64_t>(longest + 2, 16)))
    return {ProjectionKernel::kSm90Short, 128, 64, 1,
            "one wave: x in registers, a few half heads in turn"};
  return {ProjectionKernel::kSm90Resident, 128, 128, 1,
          "width 128 over 384 channels: x in registers, C in turn"};
}

}  // namespace detail

/// The fastest kernel for `shape` on `device`, by measurements on an H100; `dependent` is the
/// launch's `dependent_launch`. Assumes checked arguments; the result passes `validate` whenever
/// the device is of compute capability 8.0 or more, or the type fp32.
[[nodiscard]] inline ProjectionConfig pick(const ProjectionShape& shape, const DeviceInfo& device,
                                           bool dependent = false) {
  if (shape.dtype == DType::kF32)
    return {ProjectionKernel::kSimt, 64, 64, 1, "fp32 has no exact tensor-core product"};
  if (!device.wgmma) return detail::pick_sm80(shape, device, "no sm_90a device, or no code for it");
  if (!detail::fits_sm90(shape))
    return detail::pick_sm80(
        shape, device,
        "a width other than 64 and 128, or a depth or slice that is no multiple of 64");
  ProjectionConfig config;
  if (detail::pick_small(shape, device, dependent, config)) return config;
  if (detail::x_fits_registers(shape)) return detail::pick_registers(shape, device, dependent);
  if (detail::pick_turns(shape, device, config)) return config;
  const ProjectionConfig stream = detail::pick_stream(shape, device);
  return detail::pick_wave(shape, device, stream, config) ? config : stream;
}

}  // namespace bda::inline v0::cuda
