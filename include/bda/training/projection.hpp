#pragma once

#include <cstdint>
#include <vector>

#include "bda/linalg/eigen.hpp"
#include "bda/model/attention_weights.hpp"

/// Forward and backward of linear maps and of the basis-decomposed projection, for training them
/// from scratch (BD paper, section 4.2). C is float or double; a row is a token.
namespace bda::inline v0::training {

template <class C>
using Rows = linalg::RowMatrix<C>;

namespace detail {

template <class C>
void add_bias(const std::vector<C>& bias, Rows<C>& y) {
  if (bias.empty()) return;
  y.rowwise() += Eigen::Map<const Eigen::Matrix<C, 1, Eigen::Dynamic>>(
      bias.data(), static_cast<Eigen::Index>(bias.size()));
}

template <class C>
void add_bias_gradient(const Rows<C>& dy, std::vector<C>& gradient) {
  if (gradient.empty()) return;
  Eigen::Map<Eigen::Matrix<C, 1, Eigen::Dynamic>>(
      gradient.data(), static_cast<Eigen::Index>(gradient.size())) += dy.colwise().sum();
}

}  // namespace detail

/// x W + bias, x [tokens, in].
template <class C>
[[nodiscard]] Rows<C> linear_forward(const Matrix<C>& w, const std::vector<C>& bias,
                                     const Rows<C>& x) {
  Rows<C> y = x * linalg::map(w);
  detail::add_bias(bias, y);
  return y;
}

/// Adds x^T dy and the column sums of dy to the gradients; returns dx = dy W^T.
template <class C>
Rows<C> linear_backward(const Matrix<C>& w, const Rows<C>& x, const Rows<C>& dy,
                        Matrix<C>& w_gradient, std::vector<C>& bias_gradient) {
  linalg::map(w_gradient).noalias() += x.transpose() * dy;
  detail::add_bias_gradient(dy, bias_gradient);
  return dy * linalg::map(w).transpose();
}

/// c W + bias, or with a basis repeat(c_S) + c_rest C + bias: [tokens, heads * width] from c
/// [tokens, dim].
template <class C>
[[nodiscard]] Rows<C> projection_forward(const KvProjection<C>& p, const Rows<C>& c) {
  if (!p.basis) return linear_forward(p.weight, p.bias, c);
  const std::int64_t width = p.basis->size(), heads = p.weight.cols / width;
  const Rows<C> basis = c(Eigen::all, p.basis->indices());
  Rows<C> y = c(Eigen::all, p.basis->rest()) * linalg::map(p.weight);
  for (std::int64_t h = 0; h < heads; ++h) y.middleCols(h * width, width) += basis;
  detail::add_bias(p.bias, y);
  return y;
}

/// Adds to the gradients of `p`, held in a projection of the same shape, and to `dc`:
/// dC = c_rest^T dy, dc_rest = dy C^T, dc_S = sum over the heads of dy.
template <class C>
void projection_backward(const KvProjection<C>& p, const Rows<C>& c, const Rows<C>& dy,
                         KvProjection<C>& gradient, Rows<C>& dc) {
  if (!p.basis) {
    dc += linear_backward(p.weight, c, dy, gradient.weight, gradient.bias);
    return;
  }
  const std::int64_t width = p.basis->size(), heads = p.weight.cols / width;
  const auto rest = p.basis->rest();
  linalg::map(gradient.weight).noalias() += c(Eigen::all, rest).transpose() * dy;
  detail::add_bias_gradient(dy, gradient.bias);
  const Rows<C> from_rest = dy * linalg::map(p.weight).transpose();
  dc(Eigen::all, rest) += from_rest;
  for (std::int64_t h = 0; h < heads; ++h)
    dc(Eigen::all, p.basis->indices()) += dy.middleCols(h * width, width);
}

}  // namespace bda::inline v0::training
