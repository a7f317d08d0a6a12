#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <cstring>
#include <random>

#include "bda/cuda/absorbed/absorbed.hpp"
#include "oracle.hpp"

// The products of absorbed decoding on the emulated multiprocessor.
namespace {

using bda::cuda::AbsorbedArguments;
using bda::cuda::AbsorbedConfig;
using bda::cuda::AbsorbedKernel;
using bda::cuda::AbsorbedProduct;

struct Case {
  AbsorbedProduct product;
  AbsorbedKernel kernel;
  int tile_tokens, tile_blocks;
  std::int64_t tokens, kv_dim, width, heads, basis_begin;
};

template <class T>
void check(const Case& c) {
  INFO("tile " << c.tile_tokens << " x " << c.tile_blocks << ", " << c.tokens << " tokens");
  const bool query = c.product == AbsorbedProduct::kQuery;
  const std::int64_t in = query ? c.width : c.kv_dim, made = query ? c.kv_dim : c.width;
  const std::int64_t rest = c.kv_dim - c.width;
  std::mt19937_64 random(1);
  const bda_test::Coefficients<T> coefficients(rest, c.heads, c.width, random);
  bda_test::Aligned<T> x(c.tokens * c.heads * in), bias(c.heads * c.width);
  constexpr std::int64_t kGuard = 512;
  bda_test::Aligned<T> out(c.tokens * c.heads * made + 2 * kGuard);
  x.fill_normal(random, 1.0f);
  bias.fill_normal(random, 1.0f);
  AbsorbedArguments<T> args;
  args.product = c.product;
  args.x = {x.data(), {c.tokens, c.heads, in}};
  args.coefficients = coefficients.packed.data();
  args.packing = coefficients.layout;
  args.basis_begin = c.basis_begin;
  args.bias = query ? nullptr : bias.data();
  args.out = {out.data() + kGuard, {c.tokens, c.heads, made}};
  args.force = AbsorbedConfig{c.kernel, c.tile_tokens, c.tile_blocks, "a test"};

  const auto exact = [&](std::int64_t t, std::int64_t head, std::int64_t channel) {
    const T* row = x.data() + (t * c.heads + head) * in;
    if (!query)
      return bda_test::project(row, coefficients, c.basis_begin, args.bias,
                               head * c.width + channel);
    bda_test::Exact e;
    const std::int64_t k = channel < c.basis_begin ? channel : channel - c.width;
    for (std::int64_t j = 0; j < c.width; ++j)
      e.add(bda_test::to_double(row[j]) * coefficients.at(k, head * c.width + j));
    return e;
  };
  const auto check_out = [&] {
    std::int64_t wrong = 0;
    for (std::int64_t t = 0; t < c.tokens; ++t)
      for (std::int64_t h = 0; h < c.heads; ++h)
        for (std::int64_t i = 0; i < made; ++i) {
          const T* const got = args.out.data + (t * c.heads + h) * made + i;
          const std::int64_t copied = query ? i - c.basis_begin : -1;
          if (copied >= 0 && copied < c.width)  // the query itself
            wrong += std::memcmp(got, x.data() + (t * c.heads + h) * in + copied, sizeof(T)) != 0;
          else
            wrong += !bda_test::is_within_bound(*got, exact(t, h, i), query ? c.width : rest);
        }
    CHECK(wrong == 0);
    CHECK(out.poisoned() == 2 * kGuard);
  };
  bda_test::in_every_timing(
      [&] { return bda::cuda::run(args, bda_test::device_of(132), nullptr, 0, nullptr); },
      check_out, out);
}

TEMPLATE_TEST_CASE("emulated: absorbed query", "[cuda_emulated][absorbed]", __half, __nv_bfloat16) {
  for (const Case& c : {
           Case{AbsorbedProduct::kQuery, AbsorbedKernel::kSm90, 16, 1, 5, 320, 128, 2, 0},
           Case{AbsorbedProduct::kQuery, AbsorbedKernel::kSm90, 32, 3, 40, 512, 128, 1, 384},
           Case{AbsorbedProduct::kQuery, AbsorbedKernel::kSm90, 64, 2, 70, 192, 64, 2, 64},
       })
    check<TestType>(c);
}

TEMPLATE_TEST_CASE("emulated: absorbed output", "[cuda_emulated][absorbed]", __half,
                   __nv_bfloat16) {
  for (const Case& c : {
           Case{AbsorbedProduct::kOutput, AbsorbedKernel::kSm90, 16, 1, 5, 512, 128, 2, 384},
           Case{AbsorbedProduct::kOutput, AbsorbedKernel::kSm90, 32, 2, 33, 448, 128, 2, 0},
           Case{AbsorbedProduct::kOutput, AbsorbedKernel::kSm90, 64, 1, 70, 256, 64, 2, 128},
       })
    check<TestType>(c);
}

TEMPLATE_TEST_CASE("emulated: absorbed products, simt", "[cuda_emulated][absorbed]", float, __half,
                   __nv_bfloat16) {
  check<TestType>({AbsorbedProduct::kQuery, AbsorbedKernel::kSimt, 8, 1, 11, 72, 24, 2, 48});
  check<TestType>({AbsorbedProduct::kOutput, AbsorbedKernel::kSimt, 8, 1, 11, 96, 72, 2, 0});
}

}  // namespace
