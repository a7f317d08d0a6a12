#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <numeric>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "bda/checkpoint/transformer.hpp"
#include "bda/linalg/eigen.hpp"

/// Everything of a transformer that is not attention: norms, linear layers and MLPs, for weights
/// stored in T. Activations are double where T is double, else float; a row is a token.
namespace perplexity {

namespace checkpoint = bda::checkpoint;

template <class T>
using Activations = bda::linalg::RowMatrix<bda::compute_t<T>>;  // [tokens, width]

/// x W. A 16-bit W is widened a few columns at a time: the copy stays in cache, and Eigen's product
/// of the 16-bit types themselves would accumulate in them.
template <class T>
Activations<T> multiply(const Activations<T>& x, const bda::Matrix<T>& weight) {
  using C = bda::compute_t<T>;
  const auto w = bda::linalg::map(weight);
  Activations<T> y(x.rows(), w.cols());
  if constexpr (std::is_same_v<T, C>) {
    y.noalias() = x * w;
  } else {
    constexpr Eigen::Index kPanel = 256;  // columns
    Activations<T> panel;
    for (Eigen::Index j = 0; j < w.cols(); j += kPanel) {
      const Eigen::Index width = std::min(kPanel, w.cols() - j);
      panel = w.middleCols(j, width).template cast<C>();
      y.middleCols(j, width).noalias() = x * panel;
    }
  }
  return y;
}

/// A stored vector as a row of activations.
template <class T>
auto widened_row(const std::vector<T>& v) {
  using Row = Eigen::Matrix<T, 1, Eigen::Dynamic>;
  return Eigen::Map<const Row>(v.data(), static_cast<Eigen::Index>(v.size()))
      .template cast<bda::compute_t<T>>();
}

template <class T>
Activations<T> evaluate(const checkpoint::Linear<T>& linear, const Activations<T>& x) {
  Activations<T> y = multiply(x, linear.weight);
  if (!linear.bias.empty()) y.rowwise() += widened_row(linear.bias);
  return y;
}

template <class T>
Activations<T> evaluate(const checkpoint::Norm<T>& norm, const Activations<T>& x) {
  using C = bda::compute_t<T>;
  const auto weight = widened_row(norm.weight).eval();
  Activations<T> y = x;
  if (norm.kind == checkpoint::NormKind::kLayer) y.colwise() -= x.rowwise().mean();
  const auto width = static_cast<C>(x.cols());
  for (Eigen::Index t = 0; t < y.rows(); ++t) {
    const C variance = y.row(t).squaredNorm() / width;
    const C inverse = 1 / std::sqrt(variance + static_cast<C>(norm.epsilon));
    y.row(t) = (y.row(t) * inverse).cwiseProduct(weight);
  }
  if (!norm.bias.empty()) y.rowwise() += widened_row(norm.bias);
  return y;
}

/// In place. All but the exact GELU are of the form x / (1 + exp(-u)).
template <class C>
void activate(checkpoint::Activation kind, bda::linalg::RowMatrix<C>& x) {
  auto a = x.array();
  switch (kind) {
    case checkpoint::Activation::kSilu:
      a = a / (1 + (-a).exp());
      break;
    case checkpoint::Activation::kGeluTanh: {  // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u))
      const C slope = static_cast<C>(2 * std::numbers::sqrt2 * std::numbers::inv_sqrtpi);
      a = a / (1 + (-slope * (a + C(0.044715) * a.cube())).exp());
      break;
    }
    case checkpoint::Activation::kGelu:
      a = a.unaryExpr([](C v) { return v / 2 * (1 + std::erf(v / std::numbers::sqrt2_v<C>)); });
      break;
  }
}

template <class T>
Activations<T> evaluate(const checkpoint::PlainMlp<T>& mlp, const Activations<T>& x) {
  Activations<T> hidden = evaluate(mlp.up, x);
  activate(mlp.activation, hidden);
  return evaluate(mlp.down, hidden);
}

template <class T>
Activations<T> evaluate(const checkpoint::GatedMlp<T>& mlp, const Activations<T>& x) {
  Activations<T> hidden = evaluate(mlp.gate, x);
  activate(mlp.activation, hidden);
  hidden.array() *= evaluate(mlp.up, x).array();
  return evaluate(mlp.down, hidden);
}

/// An expert and the factor its output is added with.
template <class C>
using ExpertChoice = std::pair<std::int64_t, C>;

/// The experts of one token, by the scores `s` of all experts (see checkpoint::ExpertRouting).
/// Equal scores go to the lower index.
template <class C>
std::vector<ExpertChoice<C>> choose_experts(const checkpoint::ExpertRouting& routing,
                                            const std::vector<C>& s) {
  const auto by_score = [](const std::vector<C>& score) {
    return [&score](std::int64_t a, std::int64_t b) {
      return score[static_cast<std::size_t>(a)] > score[static_cast<std::size_t>(b)];
    };
  };
  const auto experts = static_cast<std::int64_t>(s.size());
  const std::int64_t group_size = experts / routing.groups;
  std::vector<C> group_scores;
  for (std::int64_t g = 0; g < routing.groups; ++g)
    group_scores.push_back(
        *std::max_element(s.begin() + g * group_size, s.begin() + (g + 1) * group_size));
  std::vector<std::int64_t> groups(group_scores.size());
  std::iota(groups.begin(), groups.end(), 0);
  std::stable_sort(groups.begin(), groups.end(), by_score(group_scores));
  const std::int64_t open_groups = routing.groups == 1 ? 1 : routing.groups_per_token;
  groups.resize(static_cast<std::size_t>(open_groups));
  std::sort(groups.begin(), groups.end());

  std::vector<std::int64_t> candidates;
  for (const std::int64_t g : groups)
    for (std::int64_t e = 0; e < group_size; ++e) candidates.push_back(g * group_size + e);
  std::stable_sort(candidates.begin(), candidates.end(), by_score(s));
  candidates.resize(
      std::min(candidates.size(), static_cast<std::size_t>(routing.experts_per_token)));

  C sum = 0;
  for (const std::int64_t e : candidates) sum += s[static_cast<std::size_t>(e)];
  const bool normalize = routing.normalize && candidates.size() > 1;
  const C factor = normalize ? 1 / sum : static_cast<C>(routing.scale);
  std::vector<ExpertChoice<C>> chosen;
  for (const std::int64_t e : candidates)
    chosen.emplace_back(e, s[static_cast<std::size_t>(e)] * factor);
  return chosen;
}

/// Each expert runs once, on all the tokens that chose it.
template <class T>
Activations<T> evaluate(const checkpoint::MoeMlp<T>& moe, const Activations<T>& x) {
  using C = bda::compute_t<T>;
  struct Visit {
    Eigen::Index token;
    C weight;
  };
  std::vector<std::vector<Visit>> visits(moe.experts.size());
  const Activations<T> logits = multiply(x, moe.router);
  std::vector<C> scores(moe.experts.size());
  for (Eigen::Index t = 0; t < x.rows(); ++t) {
    Eigen::Map<Eigen::Matrix<C, 1, Eigen::Dynamic>> s(scores.data(), logits.cols());
    s = (logits.row(t).array() - logits.row(t).maxCoeff()).exp();
    s /= s.sum();
    for (const auto& [expert, weight] : choose_experts(moe.routing, scores))
      visits[static_cast<std::size_t>(expert)].push_back({t, weight});
  }

  Activations<T> y = moe.shared ? evaluate(*moe.shared, x)
                                : Activations<T>(Activations<T>::Zero(x.rows(), x.cols()));
  for (std::size_t e = 0; e < visits.size(); ++e) {
    if (visits[e].empty()) continue;
    Activations<T> input(static_cast<Eigen::Index>(visits[e].size()), x.cols());
    for (Eigen::Index i = 0; i < input.rows(); ++i)
      input.row(i) = x.row(visits[e][static_cast<std::size_t>(i)].token);
    const Activations<T> output = evaluate(moe.experts[e], input);
    for (Eigen::Index i = 0; i < output.rows(); ++i) {
      const Visit& visit = visits[e][static_cast<std::size_t>(i)];
      y.row(visit.token) += visit.weight * output.row(i);
    }
  }
  return y;
}

template <class T>
Activations<T> evaluate(const checkpoint::Mlp<T>& mlp, const Activations<T>& x) {
  return std::visit([&](const auto& m) { return evaluate(m, x); }, mlp);
}

}  // namespace perplexity
