#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <string>
#include <tuple>
#include <utility>

#include "bda/cuda/projection/config.hpp"

// The choice of kernel is host arithmetic: no GPU needed here.
namespace {

using bda::DType;
using bda::cuda::DeviceInfo;
using bda::cuda::pick;
using bda::cuda::ProjectionConfig;
using bda::cuda::ProjectionKernel;
using bda::cuda::ProjectionShape;
using bda::cuda::validate;

constexpr DeviceInfo kH100{9, 0, 132, 232448, true};
constexpr DeviceInfo kH100WithoutSm90aCode{9, 0, 132, 232448, false};
constexpr DeviceInfo kA100{8, 0, 108, 166912, false};
constexpr DeviceInfo kAda{8, 9, 128, 101376, false};

ProjectionShape deepseek(std::int64_t tokens, std::int64_t heads = 128) {
  return {DType::kF16, tokens, 512, 128, heads, 0};
}

}  // namespace

TEST_CASE("every choice is one its kernel accepts", "[cuda][config]") {
  for (const DeviceInfo& device : {kH100, kH100WithoutSm90aCode, kA100, kAda})
    for (DType dtype : {DType::kF16, DType::kBF16, DType::kF32})
      for (std::int64_t width : {8, 32, 64, 80, 96, 128, 192, 256})
        for (std::int64_t rest : {8, 64, 384, 448, 704, 1408, 1920, 4096})
          for (std::int64_t heads : {1, 3, 12, 16, 128, 70000})
            for (std::int64_t begin : {0, 8, 64})
              for (std::int64_t tokens :
                   {1, 2, 16, 17, 64, 65, 127, 128, 129, 240, 512, 513, 70000}) {
                if (begin > rest) continue;
                const ProjectionShape s{dtype, tokens, rest + width, width, heads, begin};
                for (bool dependent : {false, true}) {
                  const ProjectionConfig c = pick(s, device, dependent);
                  INFO(name_of(c.kernel)
                       << ' ' << c.tile_tokens << 'x' << c.tile_columns << " splits " << c.splits
                       << " for width " << width << " rest " << rest);
                  const bda::Status status = validate(c, s, device);
                  INFO(status.message());
                  if (!status.ok() || c.why[0] == 0) FAIL("not accepted");
                }
              }
}

TEST_CASE("the choice follows shape, type and device", "[cuda][config]") {
  CHECK(pick(deepseek(32768), kH100).kernel == ProjectionKernel::kSm90Resident);
  CHECK(pick(deepseek(4096), kH100).kernel == ProjectionKernel::kSm90Resident);
  CHECK(pick(deepseek(1), kH100).kernel == ProjectionKernel::kSm90Small);
  CHECK(pick(deepseek(32), kH100).kernel == ProjectionKernel::kSm90Small);
  CHECK(pick(deepseek(4096), kH100WithoutSm90aCode).kernel == ProjectionKernel::kSm80Resident);
  CHECK(pick(deepseek(64), kH100WithoutSm90aCode).kernel == ProjectionKernel::kSm80);
  CHECK(pick(deepseek(4096), kA100).kernel == ProjectionKernel::kSm80);  // too little shared memory

  ProjectionShape deep = deepseek(8192, 16);
  deep.kv_dim = 2048;
  CHECK(pick(deep, kH100).kernel == ProjectionKernel::kSm90Halves);
  deep.basis_begin = 8;  // cuts a tile of 64 channels
  CHECK(pick(deep, kH100).kernel == ProjectionKernel::kSm80);
  ProjectionShape odd{DType::kBF16, 4096, 400, 80, 16, 8};
  CHECK(pick(odd, kH100).kernel == ProjectionKernel::kSm80Resident);

  ProjectionShape single = deepseek(4096);
  single.dtype = DType::kF32;
  CHECK(pick(single, kH100).kernel == ProjectionKernel::kSimt);
}

TEST_CASE("few tokens fill the device: more splits where there are fewer columns",
          "[cuda][config]") {
  const ProjectionConfig many = pick(deepseek(16, 128), kH100);
  CHECK(many.kernel == ProjectionKernel::kSm90Small);
  CHECK(many.splits == 1);
  CHECK(many.tile_tokens == 16);
  ProjectionShape deep{DType::kBF16, 16, 2048, 128, 16, 0};
  const ProjectionConfig few = pick(deep, kH100);
  CHECK(few.kernel == ProjectionKernel::kSm90Small);
  CHECK(few.splits == 3);
  CHECK(few.tile_tokens == 16);
  deep.tokens = 17;
  CHECK(pick(deep, kH100).tile_tokens == 32);
  CHECK(pick(deep, kH100).splits == 3);
  deep.tokens = 33;  // two tiles of tokens
  CHECK(pick(deep, kH100).tile_tokens == 32);
  CHECK(pick(deep, kH100).splits == 1);
  deep.heads = 20;
  deep.tokens = 64;
  CHECK(pick(deep, kH100).splits == 1);
  deep.heads = 23;  // 46 columns of tiles, three times that are more than the multiprocessors
  deep.tokens = 16;
  CHECK(pick(deep, kH100).splits == 1);
}

TEST_CASE("sm90_small where its tiles cover the output in one wave", "[cuda][config]") {
  struct Case {
    std::int64_t tokens, heads;
    int tile_tokens, tile_columns;
  };
  for (const Case c :
       {Case{16, 128, 16, 64}, Case{64, 64, 64, 64}, Case{64, 16, 32, 64}, Case{128, 16, 32, 64},
        Case{129, 16, 64, 64}, Case{128, 64, 128, 64}, Case{256, 16, 64, 64}, Case{257, 16, 96, 64},
        Case{512, 16, 128, 64}, Case{768, 16, 96, 128}, Case{1100, 16, 144, 128},
        Case{33, 128, 64, 64}, Case{64, 300, 64, 64}, Case{129, 128, 144, 128}}) {
    INFO(c.tokens << " tokens, " << c.heads << " heads");
    const ProjectionConfig config = pick(deepseek(c.tokens, c.heads), kH100);
    CHECK(config.kernel == ProjectionKernel::kSm90Small);
    CHECK(config.tile_tokens == c.tile_tokens);
    CHECK(config.tile_columns == c.tile_columns);
    CHECK(config.splits == 1);
  }
  CHECK(pick(deepseek(32), kH100, true).tile_columns == 64);
  // Where x fits into registers, sm90_short is ahead of 160 x 128.
  for (const auto& [tokens, heads] : {std::pair{1280, 16}, {300, 64}, {160, 128}}) {
    CHECK(pick(deepseek(tokens, heads), kH100).kernel == ProjectionKernel::kSm90Short);
    ProjectionShape shallower = deepseek(tokens, heads);
    shallower.kv_dim = 448;
    CHECK(pick(shallower, kH100).tile_tokens == 160);
  }
  // But not in two waves, nor with four half heads of 128 tokens a CTA.
  for (const auto& [tokens, heads] : {std::pair{20000, 1}, {10000, 2}})
    CHECK(pick(deepseek(tokens, heads), kH100).tile_tokens == 160);
}

TEST_CASE("sm90_turns where its tiles are one wave and sm90_small's smaller ones are more",
          "[cuda][config]") {
  const auto turns = [](std::int64_t tokens, std::int64_t heads, bool dependent = false) {
    ProjectionShape s = deepseek(tokens, heads);
    s.kv_dim = 448;  // 320 rest channels
    const ProjectionConfig c = pick(s, kH100, dependent);
    return c.kernel == ProjectionKernel::kSm90Turns ? c.tile_tokens : 0;
  };
  CHECK(turns(32, 128) == 0);
  CHECK(turns(33, 128) == 0);
  CHECK(turns(64, 99) == 0);
  CHECK(turns(64, 100) == 0);
  CHECK(turns(64, 128) == 0);
  CHECK(turns(64, 133) == 0);
  CHECK(turns(65, 128) == 128);
  CHECK(turns(128, 128) == 128);
  CHECK(turns(128, 132) == 128);
  CHECK(turns(128, 133) == 0);
  CHECK(turns(129, 128) == 0);  // tiles of 144 and 160
  CHECK(turns(129, 128, true) == 256);
  CHECK(turns(160, 128) == 0);
  CHECK(turns(160, 128, true) == 256);
  CHECK(turns(161, 128) == 256);
  CHECK(turns(256, 132) == 256);
  CHECK(turns(256, 133) == 0);
  CHECK(turns(256, 133, true) == 0);
  CHECK(turns(257, 128) == 0);
  CHECK(turns(256, 64) == 128);
  CHECK(turns(512, 64) == 256);
  CHECK(turns(1024, 16) == 128);
  CHECK(turns(2048, 16) == 256);
  CHECK(turns(2049, 16) == 0);
}

TEST_CASE("x in registers: sm90_short, launched early sm90_turns, over many heads sm90_resident",
          "[cuda][config]") {
  const auto kernel = [](std::int64_t tokens, std::int64_t heads, bool dependent = false) {
    return pick(deepseek(tokens, heads), kH100, dependent).kernel;
  };
  constexpr auto kShort = ProjectionKernel::kSm90Short;
  constexpr auto kTurns = ProjectionKernel::kSm90Turns;
  constexpr auto kResident = ProjectionKernel::kSm90Resident;
  for (std::int64_t tokens : {65, 128, 161, 256, 384, 512, 768})
    for (bool dependent : {false, true}) CHECK(kernel(tokens, 128, dependent) == kShort);
  CHECK(kernel(769, 128) == kShort);  // 15 half heads, or 7 heads with rows of two row blocks
  CHECK(kernel(1024, 128) == kResident);
  for (const auto& [tokens, heads] :
       {std::pair{1024, 16}, {256, 64}, {512, 32}, {700, 20}, {2048, 8}, {128, 96}}) {
    CHECK(kernel(tokens, heads) == kShort);
    CHECK(kernel(tokens, heads, true) == kTurns);
  }
  for (std::int64_t tokens : {2048, 2560, 4096}) CHECK(kernel(tokens, 16, true) == kShort);
  CHECK(kernel(8192, 16) == kResident);
  // Where ranges of sm90_resident would run on into a second row block.
  CHECK(kernel(3072, 16) == kShort);     // 7 half heads or 3 heads
  CHECK(kernel(5000, 16) == kShort);     // 11 or 5
  CHECK(kernel(6144, 16) == kResident);  // 16 or 6
  CHECK(kernel(7000, 16) == kShort);     // 16 or 7
  CHECK(kernel(3072, 128) == kResident);
  CHECK(kernel(200 * 128, 2) == kResident);  // more row blocks than one wave has room for
}

TEST_CASE("sm90_short cuts the output for one wave", "[cuda][config]") {
  using bda::cuda::detail::short_cut;
  const auto cut = [](std::int64_t tokens, std::int64_t heads) {
    const auto c = short_cut(deepseek(tokens, heads), kH100);
    return std::tuple(c.row_blocks, c.rows, c.ranges, c.units);
  };
  CHECK(cut(128, 128) == std::tuple(1, 128, 128, 2));
  CHECK(cut(65, 128) == std::tuple(1, 80, 128, 2));
  CHECK(cut(200, 128) == std::tuple(2, 112, 64, 4));
  CHECK(cut(384, 128) == std::tuple(3, 128, 43, 6));
  CHECK(cut(1, 1) == std::tuple(1, 16, 2, 1));
  CHECK(cut(20000, 3) == std::tuple(157, 128, 1, 6));
  for (std::int64_t heads : {1, 3, 16, 64, 128, 500})
    for (std::int64_t tokens = 1; tokens <= 5000; tokens += 13) {
      const auto c = short_cut(deepseek(tokens, heads), kH100);
      const bool covers = c.row_blocks * c.rows >= tokens && c.ranges * c.units >= 2 * heads;
      if (!covers || c.rows > 128 || c.rows % 16 != 0 || (c.ranges - 1) * c.units >= 2 * heads ||
          c.ctas() > 132)
        FAIL(heads << ' ' << tokens);
    }
}

TEST_CASE("sm90_turns and sm90_small spread their tokens evenly", "[cuda][config]") {
  using bda::cuda::detail::turns_rows;
  CHECK(turns_rows(deepseek(256, 128), 256, kH100) == 128);
  CHECK(turns_rows(deepseek(160, 128), 256, kH100) == 80);
  CHECK(turns_rows(deepseek(129, 128), 256, kH100) == 72);
  CHECK(turns_rows(deepseek(768, 16), 128, kH100) == 96);  // 8 tiles fit, 6 would do
  CHECK(turns_rows(deepseek(1, 1), 128, kH100) == 8);
  using bda::cuda::detail::small_rows;
  CHECK(small_rows(deepseek(100), {ProjectionKernel::kSm90Small, 64, 64, 1, ""}) == 56);
  CHECK(small_rows(deepseek(100), {ProjectionKernel::kSm90Small, 64, 64, 2, ""}) == 64);
  CHECK(small_rows(deepseek(1), {ProjectionKernel::kSm90Small, 16, 64, 1, ""}) == 8);
  for (int tile : {128, 256})
    for (std::int64_t heads : {1, 3, 16, 64, 128, 500})
      for (std::int64_t tokens = 1; tokens <= 5000; tokens += 13) {
        const int rows = turns_rows(deepseek(tokens, heads), tile, kH100);
        if (rows < 1 || rows > 128 || rows % 8 != 0) FAIL(tile << ' ' << heads << ' ' << tokens);
      }
}

TEST_CASE("ranges of sm90_resident stay in one row block where that costs little",
          "[cuda][config]") {
  using bda::cuda::detail::aligned_ranges;
  using bda::cuda::detail::ceil_div;
  const auto ranges = [](std::int64_t tokens, std::int64_t heads) {
    return aligned_ranges(ceil_div(tokens, 128), heads, 132);
  };
  CHECK(ranges(512, 128) == 32);
  CHECK(ranges(1536, 128) == 11);  // of 11 and 12 heads
  CHECK(ranges(4096, 128) == 4);
  CHECK(ranges(8192, 128) == 2);   // of 64, 63 would do
  CHECK(ranges(16384, 128) == 0);  // 125 would do: a whole row block
  CHECK(ranges(16384, 16) == 1);   // a whole row block, exactly
  CHECK(ranges(32768, 16) == 0);   // more than a row block
  CHECK(ranges(3072, 128) == 0);   // 24, and 26 is too much more
  CHECK(ranges(1024, 40) == 14);
  CHECK(ranges(20000, 1) == 0);
  for (std::int64_t ctas : {1, 2, 78, 132, 144})
    for (std::int64_t heads = 1; heads <= 300; ++heads)
      for (std::int64_t rows = 1; rows <= 200; ++rows) {
        const std::int64_t got = aligned_ranges(rows, heads, ctas);
        if (got < 0 || got > heads || rows * got > ctas) FAIL(rows << ' ' << heads << ' ' << ctas);
        const std::int64_t least = ceil_div(rows * heads, ctas);
        if (got > 0 && 32 * (ceil_div(heads, got) - least) > least)
          FAIL(rows << ' ' << heads << ' ' << ctas);
      }
}

TEST_CASE("sm90_wave where its tiles are one wave and x does not fit sm90_turns",
          "[cuda][config]") {
  const auto picked = [](std::int64_t tokens, std::int64_t heads) {
    ProjectionShape s = deepseek(tokens, heads);
    s.kv_dim = 1536;
    return pick(s, kH100);
  };
  const auto kernel = [&](std::int64_t tokens, std::int64_t heads) {
    return picked(tokens, heads).kernel;
  };
  for (std::int64_t heads : {67, 128, 132}) {
    for (std::int64_t tokens : {161, 200, 256})
      CHECK(kernel(tokens, heads) == ProjectionKernel::kSm90Wave);
    for (std::int64_t tokens : {129, 160})  // tiles of 144 and 160
      CHECK(kernel(tokens, heads) == ProjectionKernel::kSm90Small);
    CHECK(kernel(257, heads) ==  // of 67 heads one round of tiles of 256 columns
          (heads == 67 ? ProjectionKernel::kSm90Halves : ProjectionKernel::kSm90Stream));
  }
  CHECK(kernel(2560, 12) == ProjectionKernel::kSm90Wave);
  CHECK(kernel(2816, 12) == ProjectionKernel::kSm90Wave);
  CHECK(kernel(2817, 12) == ProjectionKernel::kSm90Stream);  // 144 tiles of 256 x 128
  CHECK(kernel(2048, 16) == ProjectionKernel::kSm90Wave);
  CHECK(picked(2816, 12).tile_tokens == 256);
  for (const auto& [tokens, heads] : {std::pair{700, 32}, {2048, 12}}) {  // 132 and 128 tiles
    CHECK(kernel(tokens, heads) == ProjectionKernel::kSm90Wave);
    CHECK(picked(tokens, heads).tile_tokens == 128);
    CHECK(picked(tokens, heads).tile_columns == 192);
  }
  CHECK(kernel(129, 98) == ProjectionKernel::kSm90Small);
  CHECK(kernel(128, 150) == ProjectionKernel::kSm90Stream);  // 100 tiles of 128 x 192, one row
  CHECK(kernel(2049, 12) == ProjectionKernel::kSm90Wave);    // 136 tiles: 256 x 128
  CHECK(picked(2049, 12).tile_tokens == 256);
}

TEST_CASE("sm90_small keeps at least two slots and within the memory it is given",
          "[cuda][config]") {
  for (std::int64_t chunks = 1; chunks <= 64; ++chunks)
    for (int tokens : bda::cuda::detail::kSmallTokens)
      for (int columns : {64, 128})
        for (int splits = 1; splits <= std::min<std::int64_t>(chunks, 8); ++splits)
          for (std::int64_t heads : {1, 128}) {
            const ProjectionShape s{DType::kF16, 300, 64 * (chunks + 2), 128, heads, 0};
            const ProjectionConfig c{ProjectionKernel::kSm90Small, tokens, columns, splits, ""};
            if (tokens > 128 && (columns != 128 || splits > 1)) continue;  // refused
            const int slots = bda::cuda::detail::small_slots(s, c, kH100);
            const std::int64_t slice = (chunks + splits - 1) / splits;
            const std::int64_t bytes =
                bda::cuda::detail::small_shared_bytes(slots, tokens, columns, splits);
            if (slots > slice || (slots < 2 && slots < slice) || bytes > kH100.shared_bytes)
              FAIL(chunks << ' ' << tokens << ' ' << columns << ' ' << splits << ": " << slots);
          }
}

TEST_CASE("the tile follows how it fills the device", "[cuda][config]") {
  const auto tile = [](std::int64_t tokens, std::int64_t kv_dim, std::int64_t width) {
    const ProjectionConfig c = pick({DType::kF16, tokens, kv_dim, width, 12, 0}, kH100);
    return std::pair(c.tile_tokens, c.tile_columns);
  };
  CHECK(tile(65536, 1536, 128) == std::pair(128, 256));
  CHECK(tile(4096, 1536, 128) == std::pair(128, 192));  // 256 tiles: two whole rounds
  CHECK(tile(16384, 768, 64) == std::pair(128, 256));
  CHECK(tile(2048, 768, 64) == std::pair(96, 128));   // 132 tiles: one wave
  CHECK(tile(4096, 768, 64) == std::pair(128, 192));  // 128 tiles
  CHECK(tile(512, 768, 64) == std::pair(64, 64));
  CHECK(tile(1536, 1536, 128) == std::pair(144, 128));  // 132 tiles, too
  CHECK(tile(1600, 1536, 128) == std::pair(160, 128));
}

TEST_CASE("a forced choice that does not fit is refused by name", "[cuda][config]") {
  const auto message = [](ProjectionConfig c, const ProjectionShape& s, const DeviceInfo& d) {
    const bda::Status status = validate(c, s, d);
    CHECK(status.code() == bda::Status::Code::kUnsupported);
    return status.message();
  };
  const ProjectionConfig resident{ProjectionKernel::kSm90Resident, 128, 128, 1, ""};
  CHECK(message(resident, deepseek(64), kA100).find("9.0") != std::string::npos);
  ProjectionShape s = deepseek(64);
  s.kv_dim = 640;
  CHECK(message(resident, s, kH100) == "rest: expected 384 (sm90_resident) = 384, got 512");
  CHECK(message({ProjectionKernel::kSm90Short, 128, 64, 1, ""}, s, kH100) ==
        "rest: expected 384 (sm90_short) = 384, got 512");
  CHECK(message({ProjectionKernel::kSm90Short, 128, 128, 1, ""}, deepseek(64), kH100) ==
        "config.tile_columns: expected this kernel's tile = 64, got 128");
  s = deepseek(64);
  s.basis_begin = 8;
  CHECK(message(resident, s, kH100).find("got 8") != std::string::npos);
  s.dtype = DType::kF32;
  CHECK(message(resident, s, kH100).find("fp16 or bf16") != std::string::npos);
  CHECK(message({ProjectionKernel::kSimt, 64, 64, 1, ""}, deepseek(1), kH100).find("fp32") !=
        std::string::npos);
  CHECK(message({ProjectionKernel::kSm90Small, 16, 64, 7, ""}, deepseek(1), kH100).find("got 7") !=
        std::string::npos);
  CHECK(message({ProjectionKernel::kSm90Small, 8, 64, 1, ""}, deepseek(1), kH100)
            .find("tile_tokens") != std::string::npos);
  CHECK(message({ProjectionKernel::kSm90Small, 192, 128, 1, ""}, deepseek(256), kH100) ==
        "config.tile_tokens: expected 16, 32, 64, 96, 128, 144 or = 160, got 192");
  CHECK(message({ProjectionKernel::kSm90Small, 144, 64, 1, ""}, deepseek(256), kH100) ==
        "config.tile_columns with more than 128 tokens: expected equal to = 128, got 64");
  CHECK(message({ProjectionKernel::kSm90Small, 160, 128, 2, ""}, deepseek(256), kH100) ==
        "config.splits with more than 128 tokens: expected equal to = 1, got 2");
  CHECK(message({ProjectionKernel::kSm90Small, 16, 64, 1, ""}, deepseek(4096, 128), kH100) ==
        "tiles of out: expected at most = 65535, got 65536");
  CHECK(message({ProjectionKernel::kSm90Wave, 256, 128, 1, ""}, deepseek(70000, 300), kH100) ==
        "tiles of out: expected at most = 65535, got 82200");
  CHECK(message({ProjectionKernel::kSm90Turns, 128, 128, 1, ""}, deepseek(70000, 128), kH100) ==
        "tiles of out: expected at most = 65535, got 70016");
  constexpr DeviceInfo kLittleMemory{9, 0, 132, 65536, true};
  CHECK(message({ProjectionKernel::kSm90Small, 64, 128, 1, ""}, deepseek(64), kLittleMemory)
            .find("shared memory") != std::string::npos);
  CHECK(message({ProjectionKernel::kSm90Stream, 128, 64, 1, ""}, deepseek(64), kH100)
            .find("got 64") != std::string::npos);
  CHECK(message({ProjectionKernel::kSm90Stream, 192, 128, 1, ""}, deepseek(64), kH100) ==
        "config.tile_tokens: expected this kernel's tile = 128, got 192");
  CHECK(message({ProjectionKernel::kSm90Halves, 128, 128, 1, ""}, deepseek(64), kH100) ==
        "config.tile_columns: expected this kernel's tile = 256, got 128");
  s = deepseek(256);
  s.kv_dim = 384;
  CHECK(message({ProjectionKernel::kSm90Halves, 128, 256, 1, ""}, s, kH100) ==
        "rest: expected at least (sm90_halves) = 320, got 256");
  s = deepseek(256);
  s.kv_dim = 576;
  CHECK(message({ProjectionKernel::kSm90Turns, 128, 128, 1, ""}, s, kH100) ==
        "rest: expected at most 384 (sm90_turns) = 384, got 448");
  CHECK(message({ProjectionKernel::kSm90Turns, 64, 128, 1, ""}, deepseek(256), kH100) ==
        "config.tile_tokens: expected this kernel's tile = 128, got 64");
  CHECK(message({ProjectionKernel::kSm90Wave, 128, 128, 1, ""}, deepseek(256), kH100) ==
        "config.tile_columns: expected this kernel's tile = 192, got 128");
  CHECK(message({ProjectionKernel::kSm90Wave, 192, 128, 1, ""}, deepseek(256), kH100) ==
        "config.tile_tokens: expected this kernel's tile = 256, got 192");
  CHECK(
      message({ProjectionKernel::kSm80, 64, 64, 1, ""}, deepseek(64), kH100).find("tile_tokens") !=
      std::string::npos);
}
