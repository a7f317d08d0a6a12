#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "bda/attention/arguments.hpp"
#include "bda/training/projection.hpp"

/// Scores of one head to attention weights, and back.
namespace bda::inline v0::training {

/// What turns q k^T of one head of one sequence into attention weights.
template <class C>
struct ScoreContext {
  C scale = 1, softcap = 0;
  bool has_sink = false;
  C sink = 0;
  AttentionMask<C> mask;
  std::int64_t sequence = 0, head = 0;

  [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const {
    return !(mask.causal && key > query) && !(mask.window > 0 && query - key >= mask.window) &&
           !(mask.key_lengths != nullptr && key >= mask.key_lengths[sequence]);
  }
};

/// weights [queries, keys] from products q k^T in place: scale, softcap, bias, mask, softmax; zeros
/// in a row without a visible key. `capped` receives tanh(scale q k^T / softcap) where there is a
/// cap.
template <class C>
void softmax_forward(const ScoreContext<C>& context, Rows<C>& products, Rows<C>& capped) {
  constexpr C kNone = -std::numeric_limits<C>::infinity();
  if (context.softcap > 0) capped.resize(products.rows(), products.cols());
  for (Eigen::Index i = 0; i < products.rows(); ++i) {
    C largest = context.has_sink ? context.sink : kNone;
    for (Eigen::Index j = 0; j < products.cols(); ++j) {
      C s = products(i, j) * context.scale;
      if (context.softcap > 0) {
        capped(i, j) = std::tanh(s / context.softcap);
        s = capped(i, j) * context.softcap;
      }
      if (context.mask.bias.data != nullptr) s += context.mask.bias(context.head, i, j);
      products(i, j) = context.visible(i, j) ? s : kNone;
      largest = std::max(largest, products(i, j));
    }
    if (largest == kNone) {
      products.row(i).setZero();
      continue;
    }
    products.row(i) = (products.row(i).array() - largest).exp();
    const C sum = products.row(i).sum() + (context.has_sink ? std::exp(context.sink - largest) : 0);
    products.row(i) /= sum;
  }
}

/// Gradient with respect to the products, from that of the weights: both [queries, keys], in place.
/// Adds to the gradients of the sink and of the mask's bias (null where there is none).
template <class C>
void softmax_backward(const ScoreContext<C>& context, const Rows<C>& weights, const Rows<C>& capped,
                      Rows<C>& gradient, double* sink_gradient, TensorView<C, 3> bias_gradient) {
  for (Eigen::Index i = 0; i < weights.rows(); ++i) {
    const C mean = weights.row(i).dot(gradient.row(i));
    if (sink_gradient != nullptr) {
      // The sink's own weight is what the keys leave of 1, unless no key and no sink is seen.
      const C own = 1 - weights.row(i).sum();
      *sink_gradient -= static_cast<double>(own * mean);
    }
    gradient.row(i) = (weights.row(i).array() * (gradient.row(i).array() - mean)).matrix().eval();
    if (bias_gradient.data != nullptr)
      for (Eigen::Index j = 0; j < weights.cols(); ++j)
        bias_gradient(context.head, i, j) += gradient(i, j);
  }
  if (context.softcap > 0) gradient.array() *= 1 - capped.array().square();
  gradient *= context.scale;
}

}  // namespace bda::inline v0::training
