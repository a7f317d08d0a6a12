#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "bda/core/tensor_view.hpp"
#include "bda/cuda/attend/attend.hpp"
#include "oracle.hpp"

// The attention step's kernels on the emulated multiprocessor.
namespace {

using bda::TensorView;
using bda::cuda::AttendArguments;
using bda::cuda::AttendConfig;
using bda::cuda::AttendKernel;

struct Case {
  AttendKernel kernel;
  int splits;
  std::int64_t batch, queries, keys, heads, kv_heads, qk, v;
  bool causal = true;
  std::int64_t window = 0;
  bool lengths = false, sinks = false;
  float softcap = 0;
};

template <class T>
struct Problem {
  static constexpr std::int64_t kGuard = 512;

  explicit Problem(const Case& of)
      : c(of),
        q(c.batch * c.queries * c.heads * c.qk),
        k(c.batch * c.keys * c.kv_heads * c.qk),
        v(c.batch * c.keys * c.kv_heads * c.v),
        out(c.batch * c.queries * c.heads * c.v + 2 * kGuard) {
    std::mt19937_64 random(1);
    for (auto* operand : {&q, &k, &v}) operand->fill_normal(random, 1.0f);
    for (std::int64_t b = 0; b < c.batch; ++b)
      lengths.push_back(static_cast<std::int32_t>(std::max<std::int64_t>(c.keys - 7 * b - 3, 0)));
    if (c.lengths) {  // what lies behind the last key may be anything
      const auto poison_from = [&](bda_test::Aligned<T>& operand, std::int64_t b,
                                   std::int64_t row) {
        for (std::int64_t i = (b * c.keys + lengths[static_cast<std::size_t>(b)]) * row;
             i < (b + 1) * c.keys * row; ++i)
          operand.poison(i);
      };
      for (std::int64_t b = 0; b < c.batch; ++b) {
        poison_from(k, b, c.kv_heads * c.qk);
        poison_from(v, b, c.kv_heads * c.v);
      }
    }
    for (std::int64_t h = 0; h < c.heads; ++h) sinks.push_back(0.5f * static_cast<float>(h));
    args.q = {q.data(), {c.batch, c.queries, c.heads, c.qk}};
    args.k = {k.data(), {c.batch, c.keys, c.kv_heads, c.qk}};
    args.v = {v.data(), {c.batch, c.keys, c.kv_heads, c.v}};
    if (c.kernel == AttendKernel::kSm90Latent) {  // the values are part of the keys
      args.v = args.k;
      args.v.extents[3] = c.v;
    }
    args.out = {out.data() + kGuard, {c.batch, c.queries, c.heads, c.v}};
    args.scale = 1 / std::sqrt(static_cast<float>(c.qk));
    args.softcap = c.softcap;
    args.causal = c.causal;
    args.window = c.window;
    args.key_lengths = c.lengths ? lengths.data() : nullptr;
    args.sinks = c.sinks ? sinks.data() : nullptr;
    args.force = AttendConfig{c.kernel, c.splits, "a test"};
  }

  static double at(const TensorView<const T, 4>& view, std::int64_t b, std::int64_t token,
                   std::int64_t head, std::int64_t channel) {
    return bda_test::to_double(
        view.data[b * view.stride(0) + token * view.stride(1) + head * view.stride(2) + channel]);
  }
  [[nodiscard]] bool visible(std::int64_t b, std::int64_t i, std::int64_t j) const {
    const std::int64_t position = i + c.keys - c.queries;
    return (!c.lengths || j < lengths[static_cast<std::size_t>(b)]) &&
           (!c.causal || j <= position) && (c.window == 0 || position - j < c.window);
  }

  /// Elements of one row of out off by more than the bound of tests/cuda/reference_attend.cu.
  [[nodiscard]] std::int64_t wrong(std::int64_t b, std::int64_t i, std::int64_t h) const {
    constexpr double unit = bda_test::kUnitRoundoff<T>;
    constexpr double smallest = std::is_same_v<T, __half> ? 0x1p-24 : 0x1p-133;
    const std::int64_t kv_head = h / (c.heads / c.kv_heads);
    const double scale = bda_test::to_double(args.scale);
    std::vector<double> scores, sizes;
    std::vector<std::int64_t> keys;
    double base = -std::numeric_limits<double>::infinity();
    for (std::int64_t j = 0; j < c.keys; ++j) {
      if (!visible(b, i, j)) continue;
      bda_test::Exact dot;
      for (std::int64_t e = 0; e < c.qk; ++e)
        dot.add(at(args.q, b, i, h, e) * at(args.k, b, j, kv_head, e));
      const double cap = bda_test::to_double(c.softcap), s = dot.sum * scale;
      scores.push_back(cap > 0 ? cap * std::tanh(s / cap) : s);
      sizes.push_back(dot.size * scale);
      keys.push_back(j);
      base = std::max(base, scores.back());
    }
    double sum = 0, error = 0;
    for (std::size_t n = 0; n < keys.size(); ++n) {
      sum += std::exp(scores[n] - base);
      error = std::max(error, static_cast<double>(c.qk) * 0x1p-23 * sizes[n] +
                                  8 * 0x1p-24 * (std::abs(scores[n]) + std::abs(base)) + 0x1p-21);
    }
    double denominator = sum;
    if (c.sinks && sum > 0)
      denominator += std::exp(bda_test::to_double(sinks[static_cast<std::size_t>(h)]) - base);
    std::int64_t count = 0;
    for (std::int64_t e = 0; e < c.v; ++e) {
      double weighted = 0, values = 0, total = 0;
      for (std::size_t n = 0; n < keys.size(); ++n) {
        const double value = at(args.v, b, keys[n], kv_head, e),
                     weight = std::exp(scores[n] - base);
        weighted += weight * value;
        values += weight * std::abs(value);
        total += std::abs(value);
      }
      const double want = sum > 0 ? weighted / denominator : 0;
      const double bound =
          sum > 0 ? (unit + 2 * error + static_cast<double>(c.keys + 64) * 0x1p-23) * values /
                            denominator +
                        smallest * total / denominator + unit * std::abs(want) + smallest
                  : 0;
      const double got =
          bda_test::to_double(args.out.data[((b * c.queries + i) * c.heads + h) * c.v + e]);
      count += !(std::abs(got - want) <= bound);
    }
    return count;
  }

  void check() {
    const auto device = bda_test::device_of(132);
    const std::size_t bytes = workspace_size(args, device);
    bda_test::Aligned<std::uint8_t> workspace(static_cast<std::int64_t>(bytes));
    bda_test::in_every_timing([&] { return run(args, device, workspace.data(), bytes, nullptr); },
                              [&] {
                                std::int64_t count = 0;
                                for (std::int64_t b = 0; b < c.batch; ++b)
                                  for (std::int64_t i = 0; i < c.queries; ++i)
                                    for (std::int64_t h = 0; h < c.heads; ++h)
                                      count += wrong(b, i, h);
                                CHECK(count == 0);
                                CHECK(out.poisoned() == 2 * kGuard);
                              },
                              out, workspace);
  }

  Case c;
  bda_test::Aligned<T> q, k, v, out;
  std::vector<std::int32_t> lengths;
  std::vector<float> sinks;
  AttendArguments<T> args;
};

template <class T>
void check(const Case& c) {
  INFO(name_of(c.kernel) << ": batch " << c.batch << ", queries " << c.queries << ", keys "
                         << c.keys << ", heads " << c.heads << ", qk " << c.qk << ", v " << c.v);
  Problem<T>(c).check();
}

TEMPLATE_TEST_CASE("emulated: attention by tiles", "[cuda_emulated][attend]", __half,
                   __nv_bfloat16) {
  constexpr AttendKernel kTile = AttendKernel::kSm90Tile;
  for (const Case& c : {
           Case{kTile, 1, 1, 70, 150, 2, 1, 64, 64},
           Case{kTile, 1, 2, 30, 90, 2, 2, 192, 128, false, 0, true, true},
           Case{kTile, 1, 1, 140, 140, 1, 1, 128, 72, true, 50, false, false, 20.0f},
           Case{kTile, 1, 1, 20, 40, 1, 1, 136, 136, true},
       })
    check<TestType>(c);
}

TEMPLATE_TEST_CASE("emulated: attention over latents", "[cuda_emulated][attend]", __half,
                   __nv_bfloat16) {
  constexpr AttendKernel kLatent = AttendKernel::kSm90Latent;
  for (const Case& c : {
           Case{kLatent, 1, 1, 2, 70, 6, 1, 576, 512, true, 0, false, true},
           Case{kLatent, 2, 2, 1, 200, 70, 1, 320, 256, true, 0, true, true},
           Case{kLatent, 3, 1, 1, 250, 5, 1, 192, 128, true, 100, false, false, 30.0f},
       })
    check<TestType>(c);
}

TEMPLATE_TEST_CASE("emulated: attention by rows", "[cuda_emulated][attend]", __half,
                   __nv_bfloat16) {
  constexpr AttendKernel kRows = AttendKernel::kRows;
  for (const Case& c : {
           Case{kRows, 1, 2, 1, 70, 4, 4, 64, 64, true, 0, true},
           Case{kRows, 2, 1, 3, 150, 4, 2, 128, 128, true, 40, false, true},
           Case{kRows, 1, 1, 2, 90, 3, 1, 192, 72, false, 0, false, false, 15.0f},
       })
    check<TestType>(c);
}

}  // namespace
