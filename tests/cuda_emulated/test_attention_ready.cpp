#include <cuda_fp8.h>

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "bda/cuda/attention_ready/attention_ready.hpp"
#include "oracle.hpp"

// Keys and values where an attention kernel reads them, on the emulated multiprocessor.
namespace {

using bda::cuda::AttentionReadyArguments;
using bda::cuda::AttentionReadyConfig;
using bda::cuda::AttentionReadyKernel;
using bda::cuda::KvElement;
using bda::cuda::KvOutput;
using bda::cuda::KvSide;
using bda::cuda::KvStore;

struct Case {
  AttentionReadyConfig config;
  std::int64_t tokens, kv_dim, width, heads, rope_width;
  std::int64_t key_basis, value_basis;
  bool key, value;
  bool paged, e4m3, head_major, bias;
  int multiprocessors;
};

/// One side's coefficients, bias and output, of which every element is poison before.
template <class T>
struct Side {
  static constexpr std::int64_t kPage = 16;

  Side(const Case& c, std::int64_t row, std::int64_t begin, std::mt19937_64& random)
      : coefficients(c.kv_dim - c.width, c.heads, c.width, random),
        bias(c.heads * c.width),
        row_width(row),
        basis_begin(begin),
        slots(static_cast<std::size_t>(c.tokens)),
        scales(static_cast<std::size_t>(c.heads)),
        same(c.e4m3 ? 0 : places(c) * c.heads * row),
        bytes(c.e4m3 ? places(c) * c.heads * row : 0) {
    bias.fill_normal(random, 1.0f);
    std::iota(slots.begin(), slots.end(), 0);
    std::shuffle(slots.begin(), slots.end(), random);
    if (c.paged) slots[slots.size() / 2] = -1;
    for (std::size_t h = 0; h < scales.size(); ++h) scales[h] = 0.01f * static_cast<float>(h + 1);
  }
  static std::int64_t places(const Case& c) { return (c.tokens + kPage - 1) / kPage * kPage; }

  KvSide<T> arguments(const Case& c) {
    KvSide<T> side;
    side.coefficients = coefficients.packed.data();
    side.packing = coefficients.layout;
    side.basis_begin = basis_begin;
    side.bias = c.bias ? bias.data() : nullptr;
    void* const data = c.e4m3 ? static_cast<void*>(bytes.data()) : static_cast<void*>(same.data());
    side.out = !c.paged       ? (c.head_major ? KvOutput::head_major(data, c.tokens, row_width)
                                              : KvOutput::token_major(data, c.heads, row_width))
               : c.head_major ? KvOutput::paged_hnd(data, slots.data(), kPage, c.heads, row_width)
                              : KvOutput::paged_nhd(data, slots.data(), kPage, c.heads, row_width);
    if (c.e4m3) {
      side.out.element = KvElement::kE4m3;
      side.out.scale = scales.data();
      side.out.scale_per_head = true;
    }
    return side;
  }
  /// Whether what is stored at `at` is `exact`; `copied` (the rope part) without any error of T.
  [[nodiscard]] bool is_right(const Case& c, std::int64_t head, std::int64_t at,
                              const bda_test::Exact& exact, bool copied,
                              bool rounded_before) const {
    const std::int64_t rest = c.kv_dim - c.width;
    if (!c.e4m3) {
      const T got = same.data()[at];
      return copied ? bda_test::to_double(got) == exact.sum
                    : bda_test::is_within_bound(got, exact, rest);
    }
    const double slack = copied ? 0 : exact.slack(rest);
    const double unit = copied ? 0 : bda_test::kUnitRoundoff<T>;
    // Half the spacing of e4m3, besides what the sum (or its rounding to T) and the division are
    // off.
    const double scale = bda_test::to_double(scales[static_cast<std::size_t>(head)]);
    const __half_raw raw = __nv_cvt_fp8_to_halfraw(bytes.data()[at], __NV_E4M3);
    const double got = bda_test::to_double(__half(raw));
    const double want = std::clamp(exact.sum / scale, -448.0, 448.0);
    const double off = (slack + (rounded_before ? unit : 0) * std::abs(exact.sum)) / scale +
                       0x1p-22 * std::abs(want);
    const double half_spacing =
        std::exp2(std::floor(std::log2(std::max(std::abs(want) + off, 0x1p-6))) - 4.0);
    return std::abs(got - want) <= half_spacing + off;
  }

  bda_test::Coefficients<T> coefficients;
  bda_test::Aligned<T> bias;
  std::int64_t row_width, basis_begin;
  std::vector<std::int64_t> slots;
  std::vector<float> scales;
  bda_test::Aligned<T> same;                    // the output, of the latent's type
  bda_test::Aligned<__nv_fp8_storage_t> bytes;  // or e4m3
};

template <class T>
void check(const Case& c) {
  INFO(name_of(c.config.kernel) << ", " << c.tokens << " tokens, heads " << c.heads << ", rope "
                                << c.rope_width << (c.paged ? ", pages" : "")
                                << (c.e4m3 ? ", e4m3" : ""));
  std::mt19937_64 random(1);
  bda_test::Aligned<T> latent(c.tokens * c.kv_dim), rope(c.tokens * c.rope_width);
  latent.fill_normal(random, 1.0f);
  rope.fill_normal(random, 1.0f);
  Side<T> key(c, c.width + c.rope_width, c.key_basis, random);
  Side<T> value(c, c.width, c.value_basis, random);
  AttentionReadyArguments<T> args;
  args.latent = {latent.data(), {c.tokens, c.kv_dim}};
  if (c.rope_width > 0) args.rope = {rope.data(), {c.tokens, c.rope_width}};
  if (c.key) args.key = key.arguments(c);
  if (c.value) args.value = value.arguments(c);
  args.force = c.config;
  const auto device = bda_test::device_of(c.multiprocessors);
  const std::size_t workspace_bytes = workspace_size(args, device);
  bda_test::Aligned<std::uint8_t> workspace(static_cast<std::int64_t>(workspace_bytes));

  const auto check_outputs = [&] {
    for (const Side<T>* side : {&key, &value}) {
      if (!(side == &key ? c.key : c.value)) continue;
      const KvOutput out = side == &key ? args.key->out : args.value->out;
      const T* const bias = c.bias ? side->bias.data() : nullptr;
      std::int64_t wrong = 0, written = 0;
      for (std::int64_t t = 0; t < c.tokens; ++t) {
        const std::int64_t slot = side->slots[static_cast<std::size_t>(t)];
        if (c.paged && slot < 0) continue;
        const std::int64_t row = c.paged ? slot / out.page_size * out.page_stride +
                                               slot % out.page_size * out.token_stride
                                         : t * out.token_stride;
        for (std::int64_t h = 0; h < c.heads; ++h)
          for (std::int64_t i = 0; i < side->row_width; ++i, ++written) {
            bda_test::Exact exact;
            if (i < c.width)
              exact = bda_test::project(latent.data() + t * c.kv_dim, side->coefficients,
                                        side->basis_begin, bias, h * c.width + i);
            else
              exact.add(bda_test::to_double(rope.data()[t * c.rope_width + i - c.width]));
            wrong += !side->is_right(c, h, row + h * out.head_stride + i, exact, i >= c.width,
                                     c.config.kernel == AttentionReadyKernel::kProjectThenPlace);
          }
      }
      CHECK(wrong == 0);
      // Nothing else is: outputs are no NaN.
      CHECK(side->same.poisoned() + side->bytes.poisoned() ==
            side->same.size() + side->bytes.size() - written);
    }
  };
  bda_test::in_every_timing(
      [&] { return run(args, device, workspace.data(), workspace_bytes, nullptr); }, check_outputs,
      key.same, key.bytes, value.same, value.bytes, workspace);
}

constexpr AttentionReadyConfig kTensor{AttentionReadyKernel::kSm90Resident, KvStore::kTensor, 128,
                                       128, "a test"};
constexpr AttentionReadyConfig kRows{AttentionReadyKernel::kSm90Resident, KvStore::kRows, 128, 128,
                                     "a test"};
constexpr AttentionReadyConfig kPlace{};

TEMPLATE_TEST_CASE("emulated: attention-ready keys and values, by tensor",
                   "[cuda_emulated][attention_ready]", __half, __nv_bfloat16) {
  for (const Case& c : {
           Case{kTensor, 200, 512, 128, 2, 64, 0, 384, true, true, false, false, false, false, 3},
           Case{kTensor, 150, 512, 128, 3, 32, 64, 64, true, true, false, false, true, false, 2},
           Case{kTensor, 300, 512, 128, 1, 0, 128, 0, true, false, false, false, false, false, 2},
       })
    check<TestType>(c);
}

TEMPLATE_TEST_CASE("emulated: attention-ready keys and values, by rows",
                   "[cuda_emulated][attention_ready]", __half, __nv_bfloat16) {
  for (const Case& c : {
           Case{kRows, 200, 512, 128, 2, 64, 0, 384, true, true, true, false, false, false, 3},
           Case{kRows, 150, 512, 128, 3, 48, 64, 64, true, true, true, true, true, false, 2},
           Case{kRows, 140, 512, 128, 2, 0, 0, 256, false, true, false, true, false, false, 2},
       })
    check<TestType>(c);
}

TEMPLATE_TEST_CASE("emulated: attention-ready keys and values, projected and placed",
                   "[cuda_emulated][attention_ready]", __half, __nv_bfloat16) {
  for (const Case& c : {
           Case{kPlace, 70, 256, 64, 3, 32, 0, 192, true, true, true, false, false, true, 132},
           Case{kPlace, 40, 256, 64, 2, 16, 64, 0, true, true, true, true, true, false, 132},
           Case{kPlace, 90, 192, 64, 2, 64, 0, 64, true, true, false, false, false, true, 132},
       })
    check<TestType>(c);
}

}  // namespace
