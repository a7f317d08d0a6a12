#pragma once

#include <Eigen/Cholesky>
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "bda/core/checks.hpp"
#include "bda/decomposition/coefficients.hpp"
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
  linalg::RowMatrix<W> basis_error;   // B - left Rᵀ [m, r]
};

namespace detail {

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

/// Rounds to nearest in place; throws where a finite value leaves the range of `storage`.
template <class Derived>
void round_to(DType storage, Eigen::MatrixBase<Derived>& values, std::string_view name) {
  if (values.size() == 0) return;
  using W = typename Derived::Scalar;
  check_fits(static_cast<double>(values.cwiseAbs().maxCoeff()), storage, name);
  switch (storage) {
    case DType::kF64:
      return;
    case DType::kF32:
      values = values.template cast<float>().template cast<W>().eval();
      return;
    case DType::kF16:
      values = values.template cast<float>()
                   .template cast<Eigen::half>()
                   .template cast<float>()
                   .template cast<W>()
                   .eval();
      return;
    case DType::kBF16:
      values = values.template cast<float>()
                   .template cast<Eigen::bfloat16>()
                   .template cast<float>()
                   .template cast<W>()
                   .eval();
      return;
  }
}

/// Rounds to nearest into T; throws where a finite value leaves T's range.
template <class T, class Derived>
linalg::RowMatrix<T> to_storage(const Eigen::MatrixBase<Derived>& values, std::string_view name) {
  if (values.size() == 0) return linalg::RowMatrix<T>(values.rows(), values.cols());
  check_fits(static_cast<double>(values.cwiseAbs().maxCoeff()), StorageTraits<T>::dtype, name);
  if constexpr (sizeof(T) == 2)
    return values.template cast<float>().template cast<T>();
  else
    return values.template cast<T>();
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
inline void round_successively(DType storage, linalg::RowMatrix<float>& values,
                               const Eigen::MatrixXd& gram, std::string_view name) {
  const Eigen::Index rows = values.rows(), r = values.cols();
  // H = UᵀU; coordinate i is rounded knowing the errors of all k > i.
  const Eigen::LLT<Eigen::MatrixXd> llt(gram);
  linalg::RowMatrix<float> carry = Eigen::MatrixXd(llt.matrixU()).cast<float>();
  for (Eigen::Index i = 0; i < r; ++i) carry.row(i) /= carry(i, i);

  // Coordinates become contiguous rows, in blocks that stay in the first levels of cache.
  constexpr Eigen::Index kBlock = 128;
  linalg::RowMatrix<float> x, error;
  Eigen::RowVectorXf rounded;
  for (Eigen::Index begin = 0; begin < rows; begin += kBlock) {
    const Eigen::Index n = std::min(kBlock, rows - begin);
    x = values.middleRows(begin, n).transpose();
    error.resize(r, n);  // x - x̂
    for (Eigen::Index i = r - 1; i >= 0; --i) {
      const Eigen::Index later = r - 1 - i;
      rounded = x.row(i);
      if (later > 0) rounded.noalias() += carry.row(i).tail(later) * error.bottomRows(later);
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
  rounded.basis_error.noalias() = left * solution.basis.cast<W>().transpose();
  rounded.basis = rounded.basis_error;
  rounded.coefficients = solution.coefficients.cast<W>();
  detail::round_to(storage, rounded.basis, std::string(name) + ".basis");
  detail::round_to(storage, rounded.coefficients, std::string(name) + ".coefficients");
  rounded.basis_error = rounded.basis - rounded.basis_error;
  return rounded;
}

/// Rounds to a 16-bit type so that the product B [I, Cᵀ], not B and C, stays close to the original:
///  1. C is fitted with a ridge of 3 u² |B_j|², because the B it will meet carries rounding noise;
///  2. C is rounded successively in the norm BᵀB + ridge;
///  3. B is refitted to the rounded C by least squares over all d channels;
///  4. B is rounded successively in the norm M Mᵀ, M = [I, Cᵀ].
/// `left_gram` is leftᵀ left.
inline RoundedHead<float> round_aware(DType storage, const linalg::RowMatrix<float>& left,
                                      const Eigen::MatrixXd& left_gram,
                                      const HeadSolution& solution, std::string_view name) {
  const Eigen::Index r = solution.basis.rows();
  const double u = detail::rms_rounding(storage);
  const Eigen::MatrixXd gram = solution.basis * left_gram * solution.basis.transpose();  // BᵀB
  // The floor keeps the Gram matrix of a rank-deficient or all-zero head positive definite.
  const double floor = gram.trace() > 0 ? 1e-12 * gram.trace() / static_cast<double>(r) : 1.0;
  Eigen::MatrixXd ridged = gram;
  ridged.diagonal() += 3 * u * u * gram.diagonal() + Eigen::VectorXd::Constant(r, floor);
  RoundedHead<float> rounded;
  // Cᵀ = (BᵀB + ridge)⁻¹ Bᵀ W_rest with W_rest = B Cᵀ.
  rounded.coefficients =
      ridged.llt().solve(gram * solution.coefficients.transpose()).transpose().cast<float>();
  detail::round_successively(storage, rounded.coefficients, ridged,
                             std::string(name) + ".coefficients");
  const Eigen::MatrixXd c = rounded.coefficients.cast<double>();
  Eigen::MatrixXd m_gram = Eigen::MatrixXd::Identity(r, r);
  m_gram.noalias() += c.transpose() * c;  // M Mᵀ
  // B = W Mᵀ (M Mᵀ)⁻¹ with W Mᵀ = left (Rᵀ + restᵀ C).
  const Eigen::MatrixXd w_m = solution.basis.transpose() + solution.rest.transpose() * c;
  const linalg::RowMatrix<float> mix =
      m_gram.llt().solve(w_m.transpose()).transpose().cast<float>();
  rounded.basis.noalias() = left * mix;
  detail::round_successively(storage, rounded.basis, m_gram, std::string(name) + ".basis");
  rounded.basis_error = rounded.basis;
  rounded.basis_error.noalias() -= left * solution.basis.cast<float>().transpose();
  return rounded;
}

}  // namespace bda::inline v0
