#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "bda/core/dtype.hpp"
#include "bda/core/status.hpp"
#include "bda/core/tensor_view.hpp"
#include "bda/cpu/packing.hpp"
#include "bda/cpu/product.hpp"
#include "bda/cpu/workspace.hpp"
#include "bda/linear/weights.hpp"

/// Low-rank layers on the CPU: two products, by the same code that attention goes through.
namespace bda::inline v0::linear {

/// In which order a layer writes its outputs.
enum class OutputOrder {
  kNatural,    // as the original layer: the store undoes the permutation
  kBasisFirst  // [S, rest], as `output_order` says: for a next layer whose rows are permuted
};

namespace detail {

/// out = bias + a w on [rows, *] views with unit column stride.
template <class C, class S>
void multiply(const MatrixView<const C>& a, const Matrix<S>& w, const C* bias,
              const MatrixView<C>& out, C* scratch, int threads) {
  cpu::Product<C, S> p;
  p.a = {a.data, {1, a.extent(0), a.extent(1)}, {0, a.stride(0), 1}};
  p.w = {w.data(), {w.rows, w.cols}};
  p.bias = bias;
  p.out = {out.data, {1, out.extent(0), 1, out.extent(1)}, {0, out.stride(0), out.extent(1), 1}};
  cpu::multiply(p, scratch, threads);
}

template <class C>
MatrixView<C> columns(const MatrixView<C>& v, std::int64_t first, std::int64_t count) {
  return {v.data + first, {v.extent(0), count}, {v.stride(0), 1}};
}

template <class C>
Status check_views(const MatrixView<const C>& x, const MatrixView<C>& out, std::int64_t in,
                   std::int64_t width) {
  if (x.data == nullptr) return Status::invalid("x.data", "a pointer, not null", 1, 0);
  if (out.data == nullptr) return Status::invalid("out.data", "a pointer, not null", 1, 0);
  if (x.extent(0) < 1) return Status::invalid("x.extent(0)", "at least", 1, x.extent(0));
  if (x.extent(1) != in) return Status::invalid("x.extent(1)", "equal to in_dim", in, x.extent(1));
  if (out.extent(0) != x.extent(0))
    return Status::invalid("out.extent(0)", "equal to x.extent(0)", x.extent(0), out.extent(0));
  if (out.extent(1) != width)
    return Status::invalid("out.extent(1)", "equal to out_dim", width, out.extent(1));
  if (x.stride(1) != 1) return Status::invalid("x.stride(1)", "contiguous", 1, x.stride(1));
  if (out.stride(1) != 1) return Status::invalid("out.stride(1)", "contiguous", 1, out.stride(1));
  return {};
}

inline Status check_workspace(std::span<std::byte> workspace, std::size_t needed) {
  if (workspace.data() != nullptr && workspace.size() >= needed) return {};
  return Status::error(Status::Code::kWorkspaceTooSmall, "workspace.size",
                       "at least workspace_size(rows)", static_cast<std::int64_t>(needed),
                       static_cast<std::int64_t>(workspace.size()));
}

}  // namespace detail

/// A basis-decomposed layer that runs: out = x W + bias, for weights stored in S (double, float,
/// Eigen::half or Eigen::bfloat16), activations and sums in compute_t<S>.
template <Storage S>
class BasisLinear {
 public:
  using Compute = compute_t<S>;

  /// Throws `Error` where the extents contradict each other.
  explicit BasisLinear(BasisWeights<S> weights, OutputOrder order = OutputOrder::kNatural,
                       int threads = 1)
      : weights_(std::move(weights)), order_(order), threads_(threads) {
    validate(weights_);
    check::at_least("threads", threads, 1);
    written_ = output_order(weights_);
    if (weights_.bias.empty()) return;
    // y_rest = (x B) C + bias_rest has to see y_S without its bias: it is added at the end.
    bias_.resize(weights_.bias.size());
    for (std::size_t i = 0; i < bias_.size(); ++i)
      bias_[i] = static_cast<Compute>(weights_.bias[static_cast<std::size_t>(written_[i])]);
  }

  [[nodiscard]] const BasisWeights<S>& weights() const { return weights_; }
  [[nodiscard]] OutputOrder order() const { return order_; }

  /// Bytes that `run` needs for `rows` rows of x.
  [[nodiscard]] std::size_t workspace_size(std::int64_t rows) const {
    cpu::Arena measured;
    static_cast<void>(Buffers(*this, rows, measured));
    return measured.required();
  }

  /// x [rows, in_dim], out [rows, out_dim], unit column strides; they must not overlap.
  [[nodiscard]] Status run(const MatrixView<const Compute>& x, const MatrixView<Compute>& out,
                           std::span<std::byte> workspace) const {
    if (Status s = detail::check_views(x, out, weights_.in_dim(), weights_.out_dim()); !s) return s;
    const std::int64_t rows = x.extent(0), r = weights_.rank(), rest = weights_.out_dim() - r;
    if (Status s = detail::check_workspace(workspace, workspace_size(rows)); !s) return s;
    cpu::Arena arena(workspace);
    const Buffers buffers(*this, rows, arena);
    const MatrixView<Compute> y =
        order_ == OutputOrder::kNatural
            ? MatrixView<Compute>(buffers.permuted, {rows, weights_.out_dim()})
            : out;
    const MatrixView<Compute> y_s = detail::columns(y, 0, r);
    const Compute* bias = bias_.empty() ? nullptr : bias_.data();
    detail::multiply<Compute, S>(x, weights_.b, nullptr, y_s, buffers.product, threads_);
    if (rest > 0)
      detail::multiply<Compute, S>(y_s, weights_.c, bias == nullptr ? nullptr : bias + r,
                                   detail::columns(y, r, rest), buffers.product, threads_);
    finish(y, bias, out);
    return {};
  }

 private:
  struct Buffers {
    Buffers(const BasisLinear& layer, std::int64_t rows, cpu::Arena& arena) {
      const BasisWeights<S>& w = layer.weights_;
      if (layer.order_ == OutputOrder::kNatural) permuted = arena.take<Compute>(rows * w.out_dim());
      cpu::Arena first, second;
      cpu::take_product_scratch<Compute>(first, rows, w.in_dim(), w.rank(), layer.threads_);
      cpu::take_product_scratch<Compute>(second, rows, w.rank(), w.out_dim() - w.rank(),
                                         layer.threads_);
      product = arena.take<Compute>(static_cast<std::int64_t>(
          std::max(first.required(), second.required()) / sizeof(Compute)));
    }
    Compute* permuted = nullptr;  // [rows, out_dim]
    Compute* product = nullptr;
  };

  /// The bias of S, and the store.
  void finish(const MatrixView<Compute>& y, const Compute* bias,
              const MatrixView<Compute>& out) const {
    const auto r = static_cast<std::size_t>(weights_.rank());
    for (std::int64_t i = 0; i < y.extent(0); ++i) {
      Compute* from = &y(i, 0);
      if (bias != nullptr)
        for (std::size_t j = 0; j < r; ++j) from[j] += bias[j];
      if (order_ == OutputOrder::kBasisFirst) continue;
      Compute* to = &out(i, 0);
      for (std::size_t j = 0; j < written_.size(); ++j) to[written_[j]] = from[j];
    }
  }

  BasisWeights<S> weights_;
  OutputOrder order_;
  int threads_;
  std::vector<std::int64_t> written_;  // output of column j before the store
  std::vector<Compute> bias_;          // in that order
};

/// The factor pair by the same product.
template <Storage S>
class FactorLinear {
 public:
  using Compute = compute_t<S>;

  /// Throws `Error` where the extents contradict each other.
  explicit FactorLinear(FactorWeights<S> weights, int threads = 1)
      : weights_(std::move(weights)), threads_(threads), bias_(weights_.bias.size()) {
    validate(weights_);
    check::at_least("threads", threads, 1);
    cpu::convert(weights_.bias.data(), bias_.data(), static_cast<std::int64_t>(bias_.size()));
  }

  [[nodiscard]] const FactorWeights<S>& weights() const { return weights_; }
  [[nodiscard]] std::size_t workspace_size(std::int64_t rows) const {
    cpu::Arena measured;
    static_cast<void>(Buffers(*this, rows, measured));
    return measured.required();
  }

  /// As BasisLinear::run.
  [[nodiscard]] Status run(const MatrixView<const Compute>& x, const MatrixView<Compute>& out,
                           std::span<std::byte> workspace) const {
    if (Status s = detail::check_views(x, out, weights_.in_dim(), weights_.out_dim()); !s) return s;
    const std::int64_t rows = x.extent(0);
    if (Status s = detail::check_workspace(workspace, workspace_size(rows)); !s) return s;
    cpu::Arena arena(workspace);
    const Buffers buffers(*this, rows, arena);
    const MatrixView<Compute> middle(buffers.middle, {rows, weights_.rank()});
    detail::multiply<Compute, S>(x, weights_.left, nullptr, middle, buffers.product, threads_);
    detail::multiply<Compute, S>(middle, weights_.right, bias_.empty() ? nullptr : bias_.data(),
                                 out, buffers.product, threads_);
    return {};
  }

 private:
  struct Buffers {
    Buffers(const FactorLinear& layer, std::int64_t rows, cpu::Arena& arena) {
      const FactorWeights<S>& w = layer.weights_;
      middle = arena.take<Compute>(rows * w.rank());
      cpu::Arena first, second;
      cpu::take_product_scratch<Compute>(first, rows, w.in_dim(), w.rank(), layer.threads_);
      cpu::take_product_scratch<Compute>(second, rows, w.rank(), w.out_dim(), layer.threads_);
      product = arena.take<Compute>(static_cast<std::int64_t>(
          std::max(first.required(), second.required()) / sizeof(Compute)));
    }
    Compute* middle = nullptr;  // [rows, rank]
    Compute* product = nullptr;
  };

  FactorWeights<S> weights_;
  int threads_;
  std::vector<Compute> bias_;
};

}  // namespace bda::inline v0::linear
