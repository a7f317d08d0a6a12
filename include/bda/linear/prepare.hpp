#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bda/core/dtype.hpp"
#include "bda/decomposition/basis_strategy.hpp"
#include "bda/decomposition/decompose_heads.hpp"
#include "bda/linear/factors.hpp"
#include "bda/linear/weights.hpp"

namespace bda::inline v0::linear {

struct LinearOptions {
  /// Any but latent_rotation: nothing upstream of a linear layer can be turned.
  BasisStrategy basis = JointPivot{};
  Rounding rounding = Rounding::kAware;
  int threads = 1;
};

/// Layers stored in T and how well they were decomposed, a head of the report each.
template <class T>
struct PreparedLinear {
  std::vector<BasisWeights<T>> weights;
  DecompositionReport report;
};

namespace detail {

template <class T, class Derived>
Matrix<T> stored(const Eigen::MatrixBase<Derived>& values, std::string_view name) {
  const linalg::RowMatrix<typename Derived::Scalar> rows = values;
  Matrix<T> m(rows.rows(), rows.cols());
  bda::detail::store(rows.data(), rows.size(), m.data(), name);
  return m;
}

}  // namespace detail

/// Layers whose outputs are combined element by element (gate and up of a gated MLP) over one
/// common basis of outputs, so that all of them may leave their outputs in the same order. They
/// need the same outputs and rank. Rows are selected by pivoting, the coefficients solved in double
/// from the factors. Throws for invalid factors, unequal shapes, latent_rotation, a basis of
/// smaller rank than a layer, and where a value does not fit T.
template <Storage T>
[[nodiscard]] PreparedLinear<T> prepare_group(std::span<const FactorPair> layers,
                                              const LinearOptions& options = {}) {
  using Work = bda::detail::work_t<T>;
  check::at_least("layers.size", static_cast<std::int64_t>(layers.size()), 1);
  if (std::holds_alternative<LatentRotation>(options.basis))
    throw Error("options.basis", "a strategy that leaves the outputs in place",
                std::string(LatentRotation::name));
  std::vector<HeadFactors<double>> heads;
  for (const FactorPair& layer : layers) {
    validate(layer);
    heads.push_back({layer.left, layer.right.transpose()});
  }
  const std::span<const HeadFactors<double>> all(heads);
  const Basis basis = select_basis(options.basis, all, {StorageTraits<T>::dtype, options.threads});
  auto done = decompose_heads<Work>(all, basis.channels, StorageTraits<T>::dtype, options.rounding,
                                    options.threads);
  PreparedLinear<T> result;
  for (const auto& head : done.heads) {
    BasisWeights<T>& w = result.weights.emplace_back();
    w.basis = basis.channels;
    w.b = detail::stored<T>(head.basis, "b");
    w.c = detail::stored<T>(head.coefficients.transpose(), "c");
  }
  result.report = std::move(done.report);
  return result;
}

/// One layer.
template <Storage T>
[[nodiscard]] PreparedLinear<T> prepare(const FactorPair& layer,
                                        const LinearOptions& options = {}) {
  return prepare_group<T>(std::span<const FactorPair>(&layer, 1), options);
}

/// The factors as they are, each rounded to T.
template <Storage T>
[[nodiscard]] FactorWeights<T> factor_weights(const FactorPair& layer) {
  validate(layer);
  return {detail::stored<T>(layer.left, "left"), detail::stored<T>(layer.right, "right"), {}};
}

}  // namespace bda::inline v0::linear
