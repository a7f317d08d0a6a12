#include <bda/core/matrix.hpp>
#include <catch2/catch_test_macros.hpp>

#include "support/error_of.hpp"

namespace {

TEST_CASE("A matrix is row-major and starts at zero") {
  bda::Matrix<float> m(2, 3);
  CHECK(m.values == std::vector<float>(6, 0.0f));
  CHECK(m.size() == 6);
  CHECK(m.bytes() == 24);
  m(1, 0) = 2.0f;
  CHECK(m.data()[3] == 2.0f);
  const bda::Matrix<float>& constant = m;
  CHECK(constant(1, 0) == 2.0f);
}

TEST_CASE("A matrix without values is empty") {
  CHECK(bda::Matrix<float>().empty());
  CHECK(bda::Matrix<float>(0, 7).empty());
  CHECK(bda::Matrix<float>(0, 7).cols == 7);
}

TEST_CASE("A matrix of negative extent is refused") {
  CHECK(std::string(bda_test::error_of([] { bda::Matrix<float>(-1, 2); }).what()) ==
        "Matrix.rows: expected at least 0, got -1");
  CHECK(bda_test::error_of([] { bda::Matrix<float>(1, -2); }).name() == "Matrix.cols");
}

}  // namespace
