#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "bda/core/checks.hpp"
#include "bda/decomposition/coefficients.hpp"
#include "bda/linalg/cholesky.hpp"
#include "bda/linalg/eigen.hpp"

/// Storing a decomposition in a short type. B and C enter the product together, so the rounding of
/// one can be made up for in the other: rounding them independently wastes accuracy.
namespace bda::inline v0 {

enum class Rounding {
  kAware,  // rounding errors are compensated as they are made; 16-bit types only
  kPlain   // each entry to nearest
};

/// Basis and coefficients of one head, held in W but rounded to the type they will be stored in.
template <class W>
struct RoundedHead {
  linalg::RowMatrix<W> basis;         // B [m, r]
  linalg::RowMatrix<W> coefficients;  // C [d - r, r]
  linalg::RowMatrix<W> gram;          // [left, E]ᵀ[left, E], E = B - left Rᵀ [2 r, 2 r]
};

namespace detail {

using linalg::nearest;

/// What the large products of a preparation run in: float is 2^13 times finer than 16-bit storage.
template <class T>
using work_t = std::conditional_t<sizeof(T) == 2, float, double>;

/// Throws where a value of magnitude `largest` would not be finite in `storage`.
inline void check_fits(double largest, DType storage, std::string_view name) {
  const auto check = [&]<class T>() {
    // Half a unit in the last place above the largest finite value rounds to Inf.
    constexpr double limit = StorageTraits<T>::largest * (1 + StorageTraits<T>::unit_roundoff / 2);
    if (largest < limit) return;
    throw Error(std::string(name),
                "values that " + std::string(name_of(storage)) + " can hold, up to " +
                    std::to_string(StorageTraits<T>::largest),
                std::to_string(largest));
  };
  switch (storage) {
    case DType::kF64:
      return check.template operator()<double>();
    case DType::kF32:
      return check.template operator()<float>();
    case DType::kF16:
      return check.template operator()<Eigen::half>();
    case DType::kBF16:
      return check.template operator()<Eigen::bfloat16>();
  }
}

/// The largest magnitude among finite values; NaN or Inf where there is one. In integers, which are
/// ordered alike and vectorise.
template <class W>
W largest_magnitude(const W* values, std::int64_t count) {
  using Bits = std::conditional_t<sizeof(W) == 4, std::uint32_t, std::uint64_t>;
  Bits largest = 0;
  for (std::int64_t i = 0; i < count; ++i)
    largest = std::max(largest, std::bit_cast<Bits>(values[i]) & (~Bits(0) >> 1));
  return std::bit_cast<W>(largest);
}

/// Calls body(begin, size) for consecutive parts of [0, count) that fit the first level of cache.
template <class Body>
void for_cached(std::int64_t count, const Body& body) {
  constexpr std::int64_t kPart = 2048;
  for (std::int64_t begin = 0; begin < count; begin += kPart)
    body(begin, std::min(kPart, count - begin));
}

/// Stores `count` values in T, each to nearest; throws where one leaves T's range.
template <class T, class U>
void store(const U* values, std::int64_t count, T* stored, std::string_view name) {
  using Wide = compute_t<U>;
  std::vector<Wide> part;
  for_cached(count, [&](std::int64_t begin, std::int64_t size) {
    part.assign(values + begin, values + begin + size);
    check_fits(static_cast<double>(largest_magnitude(part.data(), size)), StorageTraits<T>::dtype,
               name);
    for (std::int64_t i = 0; i < size; ++i)
      stored[begin + i] = nearest<T>(part[static_cast<std::size_t>(i)]);
  });
}

/// Rounds to nearest in place; throws where a value leaves the range of `storage`.
template <class W>
void round_to(DType storage, W* values, std::int64_t count, std::string_view name) {
  const auto round = [&]<class T>(T) {
    for_cached(count, [&](std::int64_t begin, std::int64_t size) {
      W* part = values + begin;
      check_fits(static_cast<double>(largest_magnitude(part, size)), storage, name);
      for (std::int64_t i = 0; i < size; ++i)
        part[i] = static_cast<W>(static_cast<compute_t<T>>(nearest<T>(part[i])));
    });
  };
  switch (storage) {
    case DType::kF64:
      return;
    case DType::kF32:
      return round(float{});
    case DType::kF16:
      return round(Eigen::half{});
    case DType::kBF16:
      return round(Eigen::bfloat16{});
  }
}
template <class Plain>
void round_to(DType storage, Eigen::PlainObjectBase<Plain>& values, std::string_view name) {
  round_to(storage, values.data(), values.size(), name);
}

/// Goes over B [m, r] once, in blocks of rows that the second level of cache holds together with
/// all that is made of them: `finish(block, exact)` makes rows of B final, a block [n, r] of which
/// `exact` are those of left Rᵀ. Returns RoundedHead's `gram`.
template <class W, class Finish>
linalg::RowMatrix<W> finish_basis(const linalg::RowMatrix<W>& left, const HeadSolution& solution,
                                  linalg::RowMatrix<W>& basis, const Finish& finish) {
  const Eigen::Index r = left.cols();
  const linalg::RowMatrix<W> to_basis = solution.basis.transpose().cast<W>();
  linalg::RowMatrix<W> gram = linalg::RowMatrix<W>::Zero(2 * r, 2 * r), both;
  constexpr Eigen::Index kBlock = 256;
  for (Eigen::Index begin = 0; begin < left.rows(); begin += kBlock) {
    const Eigen::Index n = std::min(kBlock, left.rows() - begin);
    both.resize(n, linalg::padded<W>(2 * r));
    auto exact = both.middleCols(r, r);
    both.leftCols(r) = left.middleRows(begin, n);
    linalg::set_product(exact, both.leftCols(r), to_basis);
    auto block = basis.middleRows(begin, n);
    finish(block, exact);
    exact = block - exact;
    linalg::add_gram(gram, both.leftCols(2 * r));
  }
  linalg::mirror_lower(gram);
  return gram;
}

/// Root mean square of the relative rounding error of a 16-bit type: uniform within half a unit in
/// the last place, mantissas log-uniform over a binade: sqrt(3 / (8 ln 2) / 3) of the unit
/// roundoff.
[[nodiscard]] inline double rms_rounding(DType storage) {
  return 0.4247 * (storage == DType::kF16 ? StorageTraits<Eigen::half>::unit_roundoff
                                          : StorageTraits<Eigen::bfloat16>::unit_roundoff);
}

/// Rounds each row x of `values` [rows, r] to a nearby x̂ in `storage` with a small
/// (x - x̂) H (x - x̂)ᵀ, H = `gram` [r, r]: coordinates are rounded one after the other, each error
/// being carried into those still to come as H demands (GPTQ, arXiv 2210.17323; in lattice terms
/// Babai's nearest plane).
template <class W>
void round_successively(DType storage, linalg::RowMatrix<W>& values,
                        const linalg::Cholesky<double>& gram, std::string_view name) {
  const Eigen::Index rows = values.rows(), r = values.cols();
  // H = UᵀU; coordinate i is rounded knowing the errors of all k > i.
  linalg::RowMatrix<W> carry = gram.upper().cast<W>();
  for (Eigen::Index i = 0; i < r; ++i) carry.row(i) /= carry(i, i);

  // Coordinates become contiguous rows, in blocks that stay in the first levels of cache.
  constexpr Eigen::Index kBlock = 128;
  linalg::RowMatrix<W> x, error, rounded;
  for (Eigen::Index begin = 0; begin < rows; begin += kBlock) {
    const Eigen::Index n = std::min(kBlock, rows - begin);
    x = values.middleRows(begin, n).transpose();
    error.resize(r, n);  // x - x̂
    for (Eigen::Index i = r - 1; i >= 0; --i) {
      const Eigen::Index later = r - 1 - i;
      rounded = x.row(i);
      linalg::add_product(rounded, carry.block(i, i + 1, 1, later), error.bottomRows(later));
      round_to(storage, rounded, name);
      error.row(i) = x.row(i) - rounded;
      x.row(i) = rounded;
    }
    values.middleRows(begin, n) = x.transpose();
  }
}

}  // namespace detail

/// Each entry of B = left Rᵀ and C to nearest.
template <class W>
RoundedHead<W> round_plain(DType storage, const linalg::RowMatrix<W>& left,
                           const HeadSolution& solution, std::string_view name) {
  RoundedHead<W> rounded;
  rounded.coefficients = solution.coefficients.cast<W>();
  detail::round_to(storage, rounded.coefficients, std::string(name) + ".coefficients");
  rounded.basis.resize(left.rows(), left.cols());
  const std::string basis_name = std::string(name) + ".basis";
  rounded.gram =
      detail::finish_basis(left, solution, rounded.basis, [&](auto& block, const auto& exact) {
        block = exact;
        detail::round_to(storage, block.data(), block.size(), basis_name);
      });
  return rounded;
}

/// Rounds to a 16-bit type so that the product B [I, Cᵀ], not B and C, stays close to the original:
///  1. C is fitted with a ridge of 3 u² |B_j|², because the B it will meet carries rounding noise;
///  2. C is rounded successively in the norm BᵀB + ridge;
///  3. B is refitted to the rounded C by least squares over all d channels;
///  4. B is rounded successively in the norm M Mᵀ, M = [I, Cᵀ].
/// W is float.
template <class W>
RoundedHead<W> round_aware(DType storage, const linalg::RowMatrix<W>& left,
                           const HeadSolution& solution, std::string_view name) {
  using Mat = linalg::RowMatrix<double>;
  using linalg::multiply, linalg::multiply_transposed, linalg::transposed_multiply;
  const Eigen::Index r = solution.basis.rows();
  const double u = detail::rms_rounding(storage);
  // In double: the factorisation needs the small directions.
  const Mat left_gram = linalg::gram<double>(left);
  const Mat gram = multiply_transposed(multiply(solution.basis, left_gram), solution.basis);  // BᵀB
  // The floor keeps the Gram matrix of a rank-deficient or all-zero head positive definite.
  const double floor = gram.trace() > 0 ? 1e-12 * gram.trace() / static_cast<double>(r) : 1.0;
  Mat ridged = gram;
  ridged.diagonal() += 3 * u * u * gram.diagonal() + Eigen::VectorXd::Constant(r, floor);
  const linalg::Cholesky<double> ridged_factor(ridged);
  RoundedHead<W> rounded;
  // Cᵀ = (BᵀB + ridge)⁻¹ Bᵀ W_rest with W_rest = B Cᵀ.
  rounded.coefficients = ridged_factor.divide(multiply(solution.coefficients, gram)).cast<W>();
  detail::round_successively(storage, rounded.coefficients, ridged_factor,
                             std::string(name) + ".coefficients");
  const Mat c = rounded.coefficients.template cast<double>();
  Mat m_gram = linalg::gram<double>(c);  // M Mᵀ
  m_gram.diagonal().array() += 1;
  const linalg::Cholesky<double> m_factor(m_gram);
  // B = W Mᵀ (M Mᵀ)⁻¹ with W Mᵀ = left (Rᵀ + restᵀ C).
  Mat w_m = solution.basis.transpose();
  linalg::add_transposed_product(w_m, solution.rest, c);
  const linalg::RowMatrix<W> mix = m_factor.divide(std::move(w_m)).cast<W>();
  rounded.basis = multiply(left, mix);
  detail::round_successively(storage, rounded.basis, m_factor, std::string(name) + ".basis");
  rounded.gram =
      detail::finish_basis(left, solution, rounded.basis, [](const auto&, const auto&) {});
  return rounded;
}

}  // namespace bda::inline v0
