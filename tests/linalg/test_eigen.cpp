#include <bda/linalg/eigen.hpp>
#include <catch2/catch_test_macros.hpp>
#include <numeric>

namespace {

TEST_CASE("A map of a matrix shares its values") {
  bda::Matrix<double> m(2, 3);
  std::iota(m.values.begin(), m.values.end(), 0.0);
  auto mapped = bda::linalg::map(m);
  CHECK(mapped.rows() == 2);
  CHECK(mapped.cols() == 3);
  CHECK(mapped(1, 0) == 3.0);
  mapped(0, 2) = -1.0;
  CHECK(m(0, 2) == -1.0);

  const bda::Matrix<double>& constant = m;
  CHECK(bda::linalg::map(constant)(0, 2) == -1.0);
}

TEST_CASE("A map of a view keeps its row stride") {
  std::vector<float> values(20);
  std::iota(values.begin(), values.end(), 0.0f);
  const bda::MatrixView<float> view(values.data() + 1, {3, 4}, {6, 1});
  auto mapped = bda::linalg::map(view);
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 4; ++j) REQUIRE(mapped(i, j) == static_cast<float>(1 + 6 * i + j));
  mapped(2, 3) = -1.0f;
  CHECK(values[16] == -1.0f);

  const bda::MatrixView<const float> constant = view;
  CHECK(bda::linalg::map(constant)(2, 3) == -1.0f);
}

}  // namespace
