#include <bda/linalg/scalar.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <limits>

namespace {

using bda::StorageTraits;

// The unit roundoff u is half the step from 1 to the next value: 1 + 2u is held exactly and 1 + u,
// a tie, rounds to even. (Not from numeric_limits: Eigen 3.4 gives the wrong epsilon for half.)
TEMPLATE_TEST_CASE("Storage traits agree with the type's arithmetic", "", float, double,
                   Eigen::half, Eigen::bfloat16) {
  using Traits = StorageTraits<TestType>;
  const auto stored = [](double value) {
    return static_cast<double>(static_cast<TestType>(static_cast<bda::compute_t<TestType>>(value)));
  };
  constexpr double u = Traits::unit_roundoff;
  CHECK(stored(1 + 2 * u) == 1 + 2 * u);
  CHECK(stored(1 + u) == 1);
  CHECK(Traits::largest == static_cast<double>((std::numeric_limits<TestType>::max)()));
  CHECK(bda::size_of(Traits::dtype) == static_cast<int>(sizeof(TestType)));
  STATIC_CHECK(bda::Storage<TestType>);
}

TEST_CASE("16-bit types are widened to float for products") {
  STATIC_CHECK(std::is_same_v<bda::compute_t<Eigen::half>, float>);
  STATIC_CHECK(std::is_same_v<bda::compute_t<Eigen::bfloat16>, float>);
  STATIC_CHECK(std::is_same_v<bda::compute_t<float>, float>);
  STATIC_CHECK(std::is_same_v<bda::compute_t<double>, double>);
  STATIC_CHECK_FALSE(bda::Storage<int>);
  CHECK(StorageTraits<Eigen::half>::dtype == bda::DType::kF16);
  CHECK(StorageTraits<Eigen::bfloat16>::dtype == bda::DType::kBF16);
}

}  // namespace
