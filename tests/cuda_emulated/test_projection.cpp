#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <random>
#include <string>

#include "bda/cuda/projection/projection.hpp"
#include "oracle.hpp"

// The kernels of the projection on the emulated multiprocessor: what they compute, and whether any
// of it depends on how long copies and products take. Speed, and the meaning of each instruction,
// only a device can tell: tests/cuda.
namespace {

using bda::cuda::DeviceInfo;
using bda::cuda::ProjectionArguments;
using bda::cuda::ProjectionConfig;
using bda::cuda::ProjectionKernel;

/// A projection with random operands; out and what lies around it is NaN before.
template <class T>
struct Problem {
  static constexpr std::int64_t kGuard = 512;

  Problem(std::int64_t tokens, std::int64_t kv_dim, std::int64_t width, std::int64_t heads,
          std::int64_t basis_begin, bool with_bias)
      : c(kv_dim - width, heads, width, random),
        x(tokens * kv_dim),
        bias(heads * width),
        out(tokens * heads * width + 2 * kGuard) {
    x.fill_normal(random, 1.0f);
    bias.fill_normal(random, 1.0f);
    args.x = {x.data(), {tokens, kv_dim}};
    args.coefficients = c.packed.data();
    args.packing = c.layout;
    args.basis_begin = basis_begin;
    args.bias = with_bias ? bias.data() : nullptr;
    args.out = {out.data() + kGuard, {tokens, heads, width}};
  }

  [[nodiscard]] std::int64_t wrong() const {
    const std::int64_t columns = c.layout.columns(), kv_dim = args.x.extent(1);
    std::int64_t count = 0;
    for (std::int64_t t = 0; t < args.x.extent(0); ++t)
      for (std::int64_t j = 0; j < columns; ++j)
        count += !bda_test::is_within_bound(
            args.out.data[t * columns + j],
            bda_test::project(x.data() + t * kv_dim, c, args.basis_begin, args.bias, j),
            c.layout.rest);
    return count;
  }

  void check(const DeviceInfo& device) {
    bda_test::in_every_timing([&] { return bda::cuda::run(args, device, nullptr, 0, nullptr); },
                              [&] {
                                CHECK(wrong() == 0);
                                CHECK(out.poisoned() == 2 * kGuard);
                              },
                              out);
  }

  std::mt19937_64 random{1};
  bda_test::Coefficients<T> c;
  bda_test::Aligned<T> x, bias, out;
  ProjectionArguments<T> args;
};

/// Every kernel, its tiles, and shapes that no tile divides.
struct Case {
  ProjectionKernel kernel;
  int tile_tokens, tile_columns, splits;
  std::int64_t tokens, kv_dim, width, heads, basis_begin;
  int multiprocessors;
};

std::string name_of(const Case& c) {
  return std::string(bda::cuda::name_of(c.kernel)) + " " + std::to_string(c.tile_tokens) + " x " +
         std::to_string(c.tile_columns) + ", splits " + std::to_string(c.splits) + ": " +
         std::to_string(c.tokens) + " tokens, kv_dim " + std::to_string(c.kv_dim) + ", width " +
         std::to_string(c.width) + ", heads " + std::to_string(c.heads) + ", basis at " +
         std::to_string(c.basis_begin);
}

template <class T>
void check(const Case& c) {
  for (const bool bias : {false, true}) {
    INFO(name_of(c) << (bias ? ", bias" : ""));
    Problem<T> problem(c.tokens, c.kv_dim, c.width, c.heads, c.basis_begin, bias);
    problem.args.force =
        ProjectionConfig{c.kernel, c.tile_tokens, c.tile_columns, c.splits, "a test"};
    problem.check(bda_test::device_of(c.multiprocessors));
  }
}

constexpr ProjectionKernel kSmall = ProjectionKernel::kSm90Small;

TEMPLATE_TEST_CASE("emulated: sm90_small", "[cuda_emulated][projection]", __half, __nv_bfloat16) {
  for (const Case& c : {
           Case{kSmall, 16, 64, 1, 5, 256, 64, 3, 0, 132},
           Case{kSmall, 32, 64, 1, 41, 576, 128, 1, 448, 132},
           Case{kSmall, 64, 64, 1, 70, 256, 128, 1, 0, 2},
           Case{kSmall, 64, 64, 1, 70, 1088, 64, 1, 0, 1},  // the ring goes round
           Case{kSmall, 16, 128, 1, 20, 256, 64, 3, 0, 132},
           Case{kSmall, 96, 64, 1, 100, 192, 64, 1, 0, 132},
           Case{kSmall, 128, 128, 1, 130, 192, 128, 1, 0, 132},
           Case{kSmall, 64, 128, 1, 70, 256, 64, 3, 64, 132},
           Case{kSmall, 96, 128, 1, 100, 320, 128, 2, 0, 132},
           Case{kSmall, 128, 64, 1, 130, 256, 64, 1, 0, 132},
           Case{kSmall, 144, 128, 1, 150, 256, 128, 1, 128, 132},
           Case{kSmall, 160, 128, 1, 170, 192, 64, 3, 0, 132},
       })
    check<TestType>(c);
}

TEMPLATE_TEST_CASE("emulated: sm90_small, split channels", "[cuda_emulated][projection]", __half,
                   __nv_bfloat16) {
  for (const Case& c : {
           Case{kSmall, 16, 64, 2, 5, 256, 64, 2, 0, 132},
           Case{kSmall, 32, 128, 3, 40, 576, 64, 3, 64, 132},
           Case{kSmall, 64, 64, 4, 33, 384, 128, 1, 256, 132},
       })
    check<TestType>(c);
}

TEMPLATE_TEST_CASE("emulated: sm90_turns", "[cuda_emulated][projection]", __half, __nv_bfloat16) {
  for (const Case& c : {
           Case{ProjectionKernel::kSm90Turns, 128, 128, 1, 100, 512, 128, 2, 0, 132},
           Case{ProjectionKernel::kSm90Turns, 128, 128, 1, 300, 192, 64, 3, 128, 6},
           Case{ProjectionKernel::kSm90Turns, 256, 128, 1, 200, 512, 128, 1, 384, 132},
           Case{ProjectionKernel::kSm90Turns, 256, 128, 1, 200, 512, 128, 1, 0, 1},
           Case{ProjectionKernel::kSm90Turns, 256, 128, 1, 330, 320, 64, 3, 64, 132},
       })
    check<TestType>(c);
}

TEMPLATE_TEST_CASE("emulated: sm90_wave", "[cuda_emulated][projection]", __half, __nv_bfloat16) {
  for (const Case& c : {
           Case{ProjectionKernel::kSm90Wave, 256, 128, 1, 200, 512, 128, 2, 0, 132},
           Case{ProjectionKernel::kSm90Wave, 256, 128, 1, 300, 448, 64, 3, 192, 132},
           Case{ProjectionKernel::kSm90Wave, 128, 192, 1, 200, 832, 64, 4, 0, 132},
           Case{ProjectionKernel::kSm90Wave, 128, 192, 1, 90, 512, 128, 3, 384, 132},
       })
    check<TestType>(c);
}

TEMPLATE_TEST_CASE("emulated: sm90_stream", "[cuda_emulated][projection]", __half, __nv_bfloat16) {
  for (const Case& c : {
           Case{ProjectionKernel::kSm90Stream, 128, 128, 1, 200, 256, 128, 3, 0, 4},
           Case{ProjectionKernel::kSm90Stream, 128, 192, 1, 200, 448, 64, 7, 384, 3},
       })
    check<TestType>(c);
}

TEMPLATE_TEST_CASE("emulated: sm90_halves", "[cuda_emulated][projection]", __half, __nv_bfloat16) {
  for (const Case& c : {
           Case{ProjectionKernel::kSm90Halves, 128, 256, 1, 200, 512, 128, 5, 0, 2},
           Case{ProjectionKernel::kSm90Halves, 128, 256, 1, 150, 512, 64, 5, 448, 2},
           Case{ProjectionKernel::kSm90Halves, 128, 256, 1, 130, 576, 128, 3, 64, 3},
           Case{ProjectionKernel::kSm90Halves, 128, 256, 1, 140, 384, 64, 7, 0, 2},
       })
    check<TestType>(c);
}

TEMPLATE_TEST_CASE("emulated: sm90_resident", "[cuda_emulated][projection]", __half,
                   __nv_bfloat16) {
  for (const Case& c : {
           Case{ProjectionKernel::kSm90Resident, 128, 128, 1, 200, 512, 128, 3, 0, 4},
           Case{ProjectionKernel::kSm90Resident, 128, 128, 1, 300, 512, 128, 2, 384, 2},
           Case{ProjectionKernel::kSm90Resident, 128, 128, 1, 400, 512, 128, 1, 128, 2},
           Case{ProjectionKernel::kSm90Resident, 128, 128, 1, 650, 512, 128, 3, 0, 12},
       })
    check<TestType>(c);
}

// Ranges of three half heads; of four and two of three; of one; of all; of uneven ones that begin
// with either half; of six row blocks, which go by TileOrder's groups.
TEMPLATE_TEST_CASE("emulated: sm90_short", "[cuda_emulated][projection]", __half, __nv_bfloat16) {
  for (const Case& c : {
           Case{ProjectionKernel::kSm90Short, 128, 64, 1, 200, 512, 128, 3, 0, 4},
           Case{ProjectionKernel::kSm90Short, 128, 64, 1, 90, 512, 128, 5, 384, 3},
           Case{ProjectionKernel::kSm90Short, 128, 64, 1, 130, 512, 128, 1, 128, 132},
           Case{ProjectionKernel::kSm90Short, 128, 64, 1, 300, 512, 128, 4, 0, 2},
           Case{ProjectionKernel::kSm90Short, 128, 64, 1, 257, 512, 128, 7, 192, 9},
           Case{ProjectionKernel::kSm90Short, 128, 64, 1, 700, 512, 128, 1, 0, 12},
       })
    check<TestType>(c);
}

TEMPLATE_TEST_CASE("emulated: sm80", "[cuda_emulated][projection]", __half, __nv_bfloat16) {
  for (const Case& c : {
           Case{ProjectionKernel::kSm80, 128, 128, 1, 150, 200, 80, 3, 0, 1},
           Case{ProjectionKernel::kSm80, 128, 128, 1, 300, 200, 80, 3, 0, 1},
           Case{ProjectionKernel::kSm80Resident, 128, 128, 1, 300, 200, 96, 3, 0, 2},
           Case{ProjectionKernel::kSm80, 128, 128, 1, 70, 136, 32, 5, 104, 2},
           Case{ProjectionKernel::kSm80Resident, 128, 128, 1, 150, 200, 96, 3, 0, 2},
           Case{ProjectionKernel::kSm80Resident, 128, 128, 1, 140, 320, 128, 3, 192, 2},
       })
    check<TestType>(c);
}

TEST_CASE("emulated: simt", "[cuda_emulated][projection]") {
  check<float>({ProjectionKernel::kSimt, 64, 64, 1, 70, 45, 13, 6, 0, 132});
  check<float>({ProjectionKernel::kSimt, 64, 64, 1, 5, 100, 36, 3, 64, 132});
}

}  // namespace
