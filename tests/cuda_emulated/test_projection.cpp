#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "bda/cuda/projection/projection.hpp"
#include "machine.hpp"

// The kernels of the projection on the emulated multiprocessor: what they compute, and whether any
// of it depends on how long copies and products take. Speed, and the meaning of each instruction,
// only a device can tell: tests/cuda.
namespace {

using bda::Status;
using bda::cuda::DeviceInfo;
using bda::cuda::PackedCoefficients;
using bda::cuda::ProjectionArguments;
using bda::cuda::ProjectionConfig;
using bda::cuda::ProjectionKernel;
using bda_emulated::Timing;

/// An H100 with few multiprocessors: persistent CTAs have several tiles each in small problems.
DeviceInfo device_of(int multiprocessors) {
  return {9, 0, multiprocessors, static_cast<int>(bda_emulated::kSharedBytes), true};
}

/// A projection with random operands, on the host; out and what lies around it is NaN before.
template <class T>
struct Problem {
  static constexpr std::size_t kGuard = 512;

  Problem(std::int64_t tokens, std::int64_t kv_dim, std::int64_t width, std::int64_t heads,
          std::int64_t basis_begin, bool with_bias)
      : layout{PackedCoefficients::kVersion, bda::cuda::Element<T>::dtype, kv_dim - width, heads,
               width},
        x(normal(tokens * kv_dim, 1.0f)),
        plain(normal((kv_dim - width) * heads * width, 0.05f)),
        bias(with_bias ? normal(heads * width, 1.0f) : std::vector<T>{}),
        packed(static_cast<std::size_t>(layout.size() + 64)),
        out(static_cast<std::size_t>(tokens * heads * width) + 2 * kGuard) {
    // The copy engine wants 16 bytes; the layout of a vector promises less.
    T* const aligned =
        reinterpret_cast<T*>((reinterpret_cast<std::uintptr_t>(packed.data()) + 127) / 128 * 128);
    for (std::int64_t k = 0; k < layout.rest; ++k)
      for (std::int64_t j = 0; j < layout.columns(); ++j)
        aligned[layout.offset(k, j)] = plain[static_cast<std::size_t>(k * layout.columns() + j)];
    args.x = {x.data(), {tokens, kv_dim}};
    args.coefficients = aligned;
    args.packing = layout;
    args.basis_begin = basis_begin;
    args.bias = with_bias ? bias.data() : nullptr;
    args.out = {out.data() + kGuard, {tokens, heads, width}};
  }

  std::vector<T> normal(std::int64_t count, float scale) {
    std::normal_distribution<float> distribution;
    std::vector<T> values(static_cast<std::size_t>(count));
    for (T& v : values) v = static_cast<T>(scale * distribution(random));
    return values;
  }

  /// Elements of out off by more than the bound of tests/cuda/reference.cu, or that were written
  /// beside it.
  [[nodiscard]] std::int64_t wrong() const {
    constexpr double unit = std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-8;
    const std::int64_t columns = layout.columns(), width = layout.width;
    std::int64_t count = 0;
    for (std::int64_t t = 0; t < args.x.extent(0); ++t) {
      const T* row = x.data() + t * args.x.extent(1);
      for (std::int64_t j = 0; j < columns; ++j) {
        double sum = static_cast<float>(row[args.basis_begin + j % width]);
        double size = std::abs(sum);
        const auto add = [&](double v) {
          sum += v;
          size += std::abs(v);
        };
        if (args.bias != nullptr) add(static_cast<float>(args.bias[j]));
        for (std::int64_t k = 0; k < layout.rest; ++k)
          add(static_cast<double>(static_cast<float>(row[k < args.basis_begin ? k : k + width])) *
              static_cast<double>(
                  static_cast<float>(plain[static_cast<std::size_t>(k * columns + j)])));
        const double bound =
            unit * std::abs(sum) + 0x1p-23 * static_cast<double>(layout.rest + 32) * size + 0x1p-25;
        const double got = static_cast<float>(args.out.data[t * columns + j]);
        if (!(std::abs(got - sum) <= bound)) ++count;
      }
    }
    for (std::size_t i = 0; i < kGuard; ++i)
      for (const T& guard : {out[i], out[out.size() - 1 - i]}) {
        std::uint16_t bits;
        std::memcpy(&bits, &guard, sizeof(bits));
        if (bits != 0xffff) ++count;
      }
    return count;
  }

  void check(const DeviceInfo& device) {
    const struct {
      Timing timing;
      std::uint64_t seed;
    } timings[] = {{Timing::kEarlyCopies, 1}, {Timing::kLateCopies, 2}, {Timing::kRandom, 3}};
    std::vector<T> first;
    for (const auto& [timing, seed] : timings) {
      std::memset(static_cast<void*>(out.data()), 0xff, out.size() * sizeof(T));
      bda_emulated::set_timing(timing, seed);
      const Status status = bda::cuda::run(args, device, nullptr, 0, nullptr);
      INFO(status.message());
      REQUIRE(status.ok());
      INFO("seed " << seed);
      CHECK(wrong() == 0);
      if (first.empty()) first = out;
      CHECK(std::memcmp(first.data(), out.data(), out.size() * sizeof(T)) == 0);
    }
  }

  std::mt19937_64 random{1};
  PackedCoefficients layout;
  std::vector<T> x, plain, bias, packed, out;
  ProjectionArguments<T> args;
};

/// Every kernel with every tile, on shapes of more than one tile that no tile divides.
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
    problem.check(device_of(c.multiprocessors));
  }
}

constexpr ProjectionKernel kSmall = ProjectionKernel::kSm90Small;

TEMPLATE_TEST_CASE("emulated: sm90_small", "[cuda_emulated][projection]", __half, __nv_bfloat16) {
  for (const Case& c : {
           Case{kSmall, 16, 64, 1, 5, 256, 64, 3, 0, 132},
           Case{kSmall, 32, 64, 1, 41, 576, 128, 1, 448, 132},
           Case{kSmall, 64, 64, 1, 70, 256, 128, 1, 0, 2},
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
       })
    check<TestType>(c);
}

TEMPLATE_TEST_CASE("emulated: sm80", "[cuda_emulated][projection]", __half, __nv_bfloat16) {
  for (const Case& c : {
           Case{ProjectionKernel::kSm80, 128, 128, 1, 150, 200, 80, 3, 0, 1},
           Case{ProjectionKernel::kSm80, 128, 128, 1, 70, 136, 32, 5, 104, 2},
           Case{ProjectionKernel::kSm80Resident, 128, 128, 1, 150, 200, 96, 3, 0, 2},
           Case{ProjectionKernel::kSm80Resident, 128, 128, 1, 140, 320, 128, 3, 192, 2},
       })
    check<TestType>(c);
}

}  // namespace
