#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>

#include "attention/random_layer.hpp"
#include "bda/cpu/projection.hpp"

using namespace bda;           // NOLINT
using namespace bda::testing;  // NOLINT

TEMPLATE_TEST_CASE("a projection is c_S + c_rest C + b, or c W + b", "", double, float, Eigen::half,
                   Eigen::bfloat16) {
  using C = compute_t<TestType>;
  Random random(5);
  for (int i = 0; i < 80; ++i) {
    const std::int64_t batch = random.in(1, 3), tokens = random.in(1, 20), heads = random.in(1, 5);
    const std::int64_t width = random.in(1, 40), dim = width + random.in(0, 50);
    const auto kind = static_cast<BasisKind>(random.in(0, 2));
    const auto p = random_projection<TestType>(random, kind, random.coin(), dim, heads, width);
    CAPTURE(batch, tokens, heads, width, dim, static_cast<int>(kind));
    const cpu::ProjectionPlan<C> plan(p);
    const auto c = random.vector<C>(batch * tokens * dim);
    std::vector<C> out(static_cast<std::size_t>(batch * tokens * heads * width),
                       std::numeric_limits<C>::quiet_NaN());
    const TensorView<const C, 3> in(c.data(), {batch, tokens, dim});
    const TensorView<C, 4> to(out.data(), {batch, tokens, heads, width});
    const int threads = static_cast<int>(random.in(1, 2));
    cpu::Arena measured;
    cpu::take_projection_scratch<C>(measured, p, batch * tokens, threads);
    std::vector<std::byte> memory(measured.required(), std::byte{0xff});
    cpu::Arena arena(memory);
    C* scratch = cpu::take_projection_scratch<C>(arena, p, batch * tokens, threads);
    cpu::project(p, plan, in, to, scratch, threads);

    const std::vector<std::int64_t> rest =
        p.basis ? p.basis->rest() : IndexSet::slice(dim, 0, 0).rest();
    std::int64_t wrong = 0;
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t t = 0; t < tokens; ++t)
        for (std::int64_t h = 0; h < heads; ++h)
          for (std::int64_t j = 0; j < width; ++j) {
            double value = 0, magnitude = 0;
            const auto add = [&](double term) { value += term, magnitude += std::abs(term); };
            if (p.basis) add(static_cast<double>(in(b, t, (*p.basis)[j])));
            if (!p.bias.empty())
              add(static_cast<double>(p.bias[static_cast<std::size_t>(h * width + j)]));
            for (std::size_t k = 0; k < rest.size(); ++k)
              add(static_cast<double>(in(b, t, rest[k])) *
                  static_cast<double>(p.weight(static_cast<std::int64_t>(k), h * width + j)));
            // as in test_product.cpp: at most dim + 2 terms
            const double tolerance =
                1.01 * static_cast<double>(dim + 2) * StorageTraits<C>::unit_roundoff * magnitude;
            wrong += !(std::abs(static_cast<double>(to(b, t, h, j)) - value) <= tolerance);
          }
    CHECK(wrong == 0);
  }
}

TEST_CASE("a basis of all channels leaves nothing to multiply") {
  KvProjection<float> p;
  p.basis = IndexSet::slice(3, 0, 3);
  p.weight = Matrix<float>(0, 6);
  p.bias = {0, 0, 0, 1, 1, 1};
  const cpu::ProjectionPlan<float> plan(p);
  const float c[] = {2, 3, 4};
  float out[6];
  cpu::Arena measured;
  cpu::take_projection_scratch<float>(measured, p, 1, 1);
  std::vector<std::byte> memory(measured.required());
  cpu::Arena arena(memory);
  cpu::project(p, plan, TensorView<const float, 3>(c, {1, 1, 3}),
               TensorView<float, 4>(out, {1, 1, 2, 3}),
               cpu::take_projection_scratch<float>(arena, p, 1, 1), 1);
  CHECK(std::vector<float>(out, out + 6) == std::vector<float>{2, 3, 4, 3, 4, 5});
}
