#pragma once

#include <Eigen/Core>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bda/core/index_set.hpp"
#include "bda/training.hpp"

namespace training_example {

using bda::training::Rows;

/// The shape of a small decoder-only transformer.
struct ModelShape {
  std::int64_t vocab = 0, tokens = 0;
  std::int64_t dim = 64, heads = 4, layers = 2, hidden = 128;
  /// Keys and values as c_S + c_rest C over the first dim / heads channels (BD paper, section 4.2),
  /// or as plain products.
  bool basis_decomposed = false;

  [[nodiscard]] std::int64_t head_dim() const { return dim / heads; }
};

/// All weights of the model; its gradients and an optimizer's state have the same shape.
template <class C>
struct Weights {
  struct Layer {
    std::vector<C> attention_norm, mlp_norm;  // [dim]
    bda::AttentionWeights<C> attention;
    bda::Matrix<C> up, down;  // [dim, hidden], [hidden, dim]
    std::vector<C> up_bias, down_bias;
  };
  bda::Matrix<C> embedding, positions;  // [vocab, dim], [tokens, dim]
  std::vector<Layer> layers;
  std::vector<C> final_norm;  // [dim]
  bda::Matrix<C> output;      // [dim, vocab]

  /// Calls visit(values, count) for every trained tensor, in a fixed order.
  template <class Visit>
  void for_each(const Visit& visit) {
    const auto matrix = [&](bda::Matrix<C>& m) { visit(m.data(), m.size()); };
    const auto vector = [&](std::vector<C>& v) {
      visit(v.data(), static_cast<std::int64_t>(v.size()));
    };
    matrix(embedding);
    matrix(positions);
    for (Layer& l : layers) {
      vector(l.attention_norm);
      matrix(l.attention.q);
      matrix(l.attention.k.weight);
      matrix(l.attention.v.weight);
      matrix(l.attention.o);
      vector(l.mlp_norm);
      matrix(l.up);
      vector(l.up_bias);
      matrix(l.down);
      vector(l.down_bias);
    }
    vector(final_norm);
    matrix(output);
  }
  [[nodiscard]] std::int64_t size() {
    std::int64_t total = 0;
    for_each([&](C*, std::int64_t count) { total += count; });
    return total;
  }
};

/// Normal weights of variance 1 / in, so that the sizes of activations are kept.
template <class C>
Weights<C> initial_weights(const ModelShape& shape, std::mt19937& random) {
  std::normal_distribution<double> normal;
  const auto matrix = [&](std::int64_t rows, std::int64_t cols, double scale) {
    bda::Matrix<C> m(rows, cols);
    for (C& x : m.values) x = static_cast<C>(scale * normal(random));
    return m;
  };
  const auto ones = [&] { return std::vector<C>(static_cast<std::size_t>(shape.dim), C(1)); };
  const auto zeros = [](std::int64_t n) { return std::vector<C>(static_cast<std::size_t>(n)); };
  const auto linear = [&](std::int64_t in, std::int64_t out) {
    return matrix(in, out, 1 / std::sqrt(static_cast<double>(in)));
  };
  const std::int64_t d = shape.dim, r = shape.head_dim();
  Weights<C> w;
  w.embedding = matrix(shape.vocab, d, 0.5);
  w.positions = matrix(shape.tokens, d, 0.5);
  for (std::int64_t i = 0; i < shape.layers; ++i) {
    auto& l = w.layers.emplace_back();
    l.attention_norm = l.mlp_norm = ones();
    auto& a = l.attention;
    a.config.query_dim = a.config.kv_dim = a.config.out_dim = d;
    a.config.heads = a.config.kv_heads = shape.heads;
    a.config.qk_dim = a.config.v_dim = r;
    a.config.scale = 1 / std::sqrt(static_cast<double>(r));
    a.q = linear(d, d);
    a.o = linear(d, d);
    for (auto* projection : {&a.k, &a.v}) {
      projection->weight = linear(d, d);
      if (!shape.basis_decomposed) continue;
      // the same random numbers as the plain model's, less the rows of the basis
      projection->basis = bda::IndexSet::slice(d, 0, r);
      auto& values = projection->weight.values;
      values.erase(values.begin(), values.begin() + r * d);
      projection->weight.rows = d - r;
    }
    l.up = linear(d, shape.hidden);
    l.down = linear(shape.hidden, d);
    l.up_bias = zeros(shape.hidden);
    l.down_bias = zeros(d);
  }
  w.final_norm = ones();
  w.output = linear(d, shape.vocab);
  return w;
}

struct Loss {
  double mean = 0;           // -log p of the answers, natural logarithm
  std::int64_t correct = 0;  // sequences answered without a mistake
};

/// Loss of a batch [sequences, tokens + 1] over positions from `first_answer` on, and, where
/// `gradients` is given, its gradient added to it.
template <class C>
Loss evaluate(const Weights<C>& w, std::span<const std::int64_t> batch, std::int64_t tokens,
              std::int64_t first_answer, Weights<C>* gradients) {
  namespace t = bda::training;
  constexpr double kEpsilon = 1e-6;
  const auto sequences = static_cast<std::int64_t>(batch.size()) / (tokens + 1);
  const auto embedding = bda::linalg::map(w.embedding);
  const auto positions = bda::linalg::map(w.positions);
  const auto token = [&](std::int64_t s, std::int64_t i) {
    return batch[static_cast<std::size_t>(s * (tokens + 1) + i)];
  };
  Rows<C> x(sequences * tokens, embedding.cols());
  for (std::int64_t s = 0; s < sequences; ++s)
    for (std::int64_t i = 0; i < tokens; ++i)
      x.row(s * tokens + i) = embedding.row(token(s, i)) + positions.row(i);

  struct Tape {
    Rows<C> x, normed, middle, middle_normed, up;
    t::AttentionTraining<C> attention;
  };
  std::vector<Tape> tapes;
  tapes.reserve(w.layers.size());
  for (const auto& layer : w.layers) {
    Tape& tape =
        tapes.emplace_back(Tape{x, {}, {}, {}, {}, t::AttentionTraining<C>(layer.attention)});
    tape.normed = t::rms_norm_forward(x, layer.attention_norm, kEpsilon);
    Rows<C> mixed(x.rows(), x.cols());
    bda::AttentionArguments<C> args;
    args.x = {tape.normed.data(), {sequences, tokens, x.cols()}};
    args.out = {mixed.data(), {sequences, tokens, x.cols()}};
    tape.attention.forward(args);
    x += mixed;
    tape.middle = x;
    tape.middle_normed = t::rms_norm_forward(x, layer.mlp_norm, kEpsilon);
    tape.up = t::linear_forward(layer.up, layer.up_bias, tape.middle_normed).cwiseMax(C(0));
    x += t::linear_forward(layer.down, layer.down_bias, tape.up);
  }
  const Rows<C> last = t::rms_norm_forward(x, w.final_norm, kEpsilon);
  Rows<C> logits = t::linear_forward(w.output, {}, last);

  Loss loss;
  const auto answers = static_cast<double>(sequences * (tokens - first_answer));
  for (std::int64_t s = 0; s < sequences; ++s) {
    bool correct = true;
    for (std::int64_t i = 0; i < tokens; ++i) {
      auto row = logits.row(s * tokens + i);
      if (i < first_answer) {
        row.setZero();
        continue;
      }
      const std::int64_t answer = token(s, i + 1);
      Eigen::Index best = 0;
      row.maxCoeff(&best);
      correct = correct && best == answer;
      row.array() = (row.array() - row.maxCoeff()).exp();
      row /= row.sum();
      loss.mean -= std::log(static_cast<double>(row(answer))) / answers;
      row(answer) -= 1;  // the gradient of -log p in the logits
    }
    loss.correct += correct;
  }
  if (gradients == nullptr) return loss;

  std::vector<C> none;
  const Rows<C> d_logits = logits / static_cast<C>(answers);
  Rows<C> dx = t::rms_norm_backward(
      x, w.final_norm, kEpsilon,
      t::linear_backward(w.output, last, d_logits, gradients->output, none), gradients->final_norm);
  for (std::size_t i = w.layers.size(); i-- > 0;) {
    const auto& layer = w.layers[i];
    auto& g = gradients->layers[i];
    const Tape& tape = tapes[i];
    Rows<C> d_up = t::linear_backward(layer.down, tape.up, dx, g.down, g.down_bias);
    d_up = (tape.up.array() > 0).select(d_up, C(0));
    dx += t::rms_norm_backward(
        tape.middle, layer.mlp_norm, kEpsilon,
        t::linear_backward(layer.up, tape.middle_normed, d_up, g.up, g.up_bias), g.mlp_norm);
    const auto attention = tape.attention.backward(dx);
    const auto add = [](bda::Matrix<C>& to, const bda::Matrix<C>& from) {
      bda::linalg::map(to) += bda::linalg::map(from);
    };
    add(g.attention.q, attention.weights.q);
    add(g.attention.k.weight, attention.weights.k.weight);
    add(g.attention.v.weight, attention.weights.v.weight);
    add(g.attention.o, attention.weights.o);
    dx +=
        t::rms_norm_backward(tape.x, layer.attention_norm, kEpsilon, attention.x, g.attention_norm);
  }
  for (std::int64_t s = 0; s < sequences; ++s)
    for (std::int64_t i = 0; i < tokens; ++i) {
      bda::linalg::map(gradients->embedding).row(token(s, i)) += dx.row(s * tokens + i);
      bda::linalg::map(gradients->positions).row(i) += dx.row(s * tokens + i);
    }
  return loss;
}

}  // namespace training_example
