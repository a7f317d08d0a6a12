#include <bda/linalg/product.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>

namespace {

using bda::linalg::RowMatrix;

/// A block within a larger matrix: rows that do not touch.
template <class S>
auto random_block(Eigen::Index rows, Eigen::Index cols) {
  struct Block {
    RowMatrix<S> all;
    Eigen::Index rows, cols;
    auto block() { return all.block(1, 2, rows, cols); }
  };
  return Block{RowMatrix<S>::Random(rows + 2, cols + 3), rows, cols};
}

/// Whether sums of `depth` products of random values up to 1 are as exact as S allows. Such sums
/// stay within a few sqrt(depth) / 3, each of their roundings within eps / 2 of that and of random
/// sign: together eps depth / 15, root mean square. 4 depth covers sixty of these, and 4 what is
/// scaled and added.
template <class S>
bool near(const RowMatrix<S>& actual, const RowMatrix<double>& expected, Eigen::Index depth) {
  const double bound =
      static_cast<double>(std::numeric_limits<S>::epsilon()) * static_cast<double>(4 * depth + 4);
  return actual.rows() == expected.rows() && actual.cols() == expected.cols() &&
         (actual.size() == 0 ||
          (actual.template cast<double>() - expected).cwiseAbs().maxCoeff() <= bound);
}

TEMPLATE_TEST_CASE("Products of any shape, plain and transposed", "[product]", float, double) {
  using S = TestType;
  // around whole register blocks, cache blocks and vectors
  const Eigen::Index sizes[][3] = {{1, 1, 1},    {1, 40, 30},     {40, 1, 30},   {3, 2, 0},
                                   {0, 5, 4},    {14, 32, 64},    {15, 33, 257}, {29, 300, 16},
                                   {100, 47, 3}, {128, 128, 300}, {13, 17, 520}, {2, 2, 1000}};
  for (const auto& [m, n, k] : sizes) {
    CAPTURE(m, n, k);
    auto a = random_block<S>(m, k), b = random_block<S>(k, n);
    const RowMatrix<double> product =
        a.block().template cast<double>().lazyProduct(b.block().template cast<double>());
    const RowMatrix<S> a_t = a.block().transpose(), b_t = b.block().transpose();
    CHECK(near<S>(bda::linalg::multiply(a.block(), b.block()), product, k));
    CHECK(near<S>(bda::linalg::transposed_multiply(a_t, b.block()), product, k));
    CHECK(near<S>(bda::linalg::multiply_transposed(a.block(), b_t), product, k));

    // what surrounds a block of the output stays, and what was in it is added to
    auto out = random_block<S>(m, n);
    const auto add = [&](const auto& call, S scale) {
      const RowMatrix<S> before = out.all;
      call(scale);
      RowMatrix<double> expected = before.template cast<double>();
      expected.block(1, 2, m, n) += static_cast<double>(scale) * product;
      return near<S>(out.all, expected, k) &&
             (out.all.array() == before.array()).count() >= before.size() - m * n;
    };
    CHECK(add([&](S s) { bda::linalg::add_product(out.block(), a.block(), b.block(), s); }, S(-1)));
    CHECK(add([&](S s) { bda::linalg::add_transposed_product(out.block(), a_t, b.block(), s); },
              S(1)));
    CHECK(add([&](S s) { bda::linalg::add_product_transposed(out.block(), a.block(), b_t, s); },
              S(0.5)));
  }
}

TEMPLATE_TEST_CASE("Gram matrices of any shape", "[product]", float, double) {
  using S = TestType;
  const Eigen::Index sizes[][2] = {{1, 1}, {5, 3}, {0, 4}, {4, 0}, {130, 32}, {300, 77}, {64, 256}};
  for (const auto& [m, r] : sizes) {
    CAPTURE(m, r);
    const RowMatrix<S> a = RowMatrix<S>::Random(m, r);
    const RowMatrix<double> wide = a.template cast<double>();
    const RowMatrix<double> expected = wide.transpose().lazyProduct(wide);
    CHECK(near<S>(bda::linalg::gram<S>(a), expected, m));
    CHECK(near<double>(bda::linalg::gram<double>(a), expected, m));
  }
}

TEST_CASE("A product that is set does not depend on what was there", "[product]") {
  for (const Eigen::Index columns : {1, 20, 40}) {
    const RowMatrix<float> a = RowMatrix<float>::Random(20, 30);
    const RowMatrix<float> b = RowMatrix<float>::Random(30, columns);
    RowMatrix<float> out = RowMatrix<float>::Constant(20, columns, std::nanf(""));
    bda::linalg::set_product(out, a, b);
    CHECK(near<float>(out, a.cast<double>().lazyProduct(b.cast<double>()), 30));
  }
}

}  // namespace
