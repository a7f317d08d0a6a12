#include <bda/core/tensor_view.hpp>
#include <catch2/catch_test_macros.hpp>
#include <numeric>
#include <vector>

namespace {

using bda::TensorView;

TEST_CASE("A dense view is row-major") {
  std::vector<int> values(2 * 3 * 5);
  std::iota(values.begin(), values.end(), 0);
  const TensorView<int, 3> view(values.data(), {2, 3, 5});
  CHECK(view.strides == std::array<std::int64_t, 3>{15, 5, 1});
  CHECK(view.size() == 30);
  CHECK(view.extent(1) == 3);
  CHECK(view.stride(1) == 5);
  int expected = 0;
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j)
      for (int k = 0; k < 5; ++k) REQUIRE(view(i, j, k) == expected++);
}

TEST_CASE("A strided view and its sub-views address the same values") {
  std::vector<int> values(100);
  std::iota(values.begin(), values.end(), 0);
  const TensorView<int, 3> view(values.data() + 3, {2, 3, 4}, {40, 2, 9});
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j)
      for (int k = 0; k < 4; ++k) {
        REQUIRE(view(i, j, k) == 3 + 40 * i + 2 * j + 9 * k);
        REQUIRE(&view[i][j](k) == &view(i, j, k));
      }
  CHECK(view[1].extents == std::array<std::int64_t, 2>{3, 4});
  CHECK(view[1].strides == std::array<std::int64_t, 2>{2, 9});
}

TEST_CASE("Offsets are 64-bit") {
  // The address is computed, never read.
  std::vector<char> value(1);
  const TensorView<char, 2> view(value.data(), {1 << 20, 1 << 20});
  CHECK(view.size() == std::int64_t{1} << 40);
  CHECK(view.stride(0) * (view.extent(0) - 1) == (std::int64_t{1} << 40) - (1 << 20));
}

TEST_CASE("A view writes through and becomes a view of const values") {
  std::vector<float> values(6, 0.0f);
  const bda::MatrixView<float> view(values.data(), {2, 3});
  view(1, 2) = 4.0f;
  CHECK(values[5] == 4.0f);
  const bda::MatrixView<const float> constant = view;
  CHECK(constant(1, 2) == 4.0f);
  STATIC_CHECK_FALSE(std::is_convertible_v<bda::MatrixView<const float>, bda::MatrixView<float>>);
}

TEST_CASE("A view of nothing is empty") {
  int value = 0;
  CHECK(TensorView<int, 2>().empty());
  CHECK(TensorView<int, 2>(&value, {0, 4}).empty());
  CHECK(TensorView<int, 2>(nullptr, {1, 1}).empty());
  CHECK_FALSE(TensorView<int, 2>(&value, {1, 1}).empty());
}

}  // namespace
