#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "bda/core/tensor_view.hpp"
#include "bda/cuda/absorbed/absorbed.hpp"
#include "bda/cuda/layer/layer.hpp"
#include "bda/cuda/projection/projection.hpp"
#include "bda/cuda_backend/device_array.hpp"
#include "bda/cuda_backend/product.hpp"
#include "bda/model/attention_weights.hpp"

namespace bda::inline v0::cuda {

/// One key or value projection on the device: a plain product, or the fused kernel on packed
/// coefficients. A basis that is no slice is made one by a gather of the channels: [S | rest]. For
/// absorbed decoding also the products that take queries to latents and latents to values.
template <class T>
class KvPlan {
 public:
  KvPlan() = default;
  template <class S>
  KvPlan(std::shared_ptr<const BlasHandle> blas, const KvProjection<S>& p, std::int64_t depth,
         std::int64_t heads, std::int64_t width)
      : depth_(depth),
        heads_(heads),
        width_(width),
        bias_(p.bias.data(), static_cast<std::int64_t>(p.bias.size())) {
    if (!p.decomposed()) {
      weight_ = DeviceArray<T>(p.weight.data(), p.weight.size());
      product_ = Product<T>(blas, weight_.data(), bias_.data(), depth, heads * width);
      absorb_ = Product<T>(blas, weight_.data(), {width, depth, heads * width, true, heads, width});
      expand_ =
          Product<T>(blas, weight_.data(), {depth, width, heads * width, false, heads, width});
      return;
    }
    packing_ = {PackedCoefficients::kVersion, Element<T>::dtype, depth - width, heads, width};
    const MatrixView<const S> c(p.weight.data(), {p.weight.rows, p.weight.cols});
    const std::vector<S> packed = pack_coefficients<S>(c, packing_);
    weight_ = DeviceArray<T>(packed.data(), static_cast<std::int64_t>(packed.size()));
    // The kernels move 16 bytes at a time: a slice off that grid is gathered too.
    if (p.basis->is_slice() && p.basis->offset() % 8 == 0) {
      basis_begin_ = p.basis->offset();
      return;
    }
    std::vector<std::int32_t> columns;
    for (std::int64_t i : p.basis->indices()) columns.push_back(static_cast<std::int32_t>(i));
    for (std::int64_t i : p.basis->rest()) columns.push_back(static_cast<std::int32_t>(i));
    columns_ = DeviceArray<std::int32_t>(columns.data(), depth);
  }

  [[nodiscard]] bool decomposed() const { return packing_.width > 0; }
  [[nodiscard]] bool absorbable() const { return !gathers() && bias_.size() == 0; }
  [[nodiscard]] bool gathers() const { return columns_.size() > 0; }
  [[nodiscard]] const PackedCoefficients& packing() const { return packing_; }
  [[nodiscard]] const T* coefficients() const { return weight_.data(); }
  [[nodiscard]] const T* bias() const { return bias_.data(); }
  [[nodiscard]] std::int64_t basis_begin() const { return basis_begin_; }
  /// Elements `run` needs beside its operands, for so many rows.
  [[nodiscard]] std::int64_t scratch(std::int64_t rows) const {
    return gathers() ? rows * depth_ : 0;
  }

  /// Whether `run` can write heads so far apart.
  [[nodiscard]] bool writes(std::int64_t head_stride) const {
    return decomposed() || head_stride == width_ || heads_ == 1;
  }
  /// y [rows, heads, width] of c [rows, depth].
  Status run(TensorView<const T, 2> c, const TensorView<T, 3>& y, T* scratch,
             const DeviceInfo& device, void* blas_workspace, cudaStream_t stream) const {
    const std::int64_t rows = c.extent(0);
    if (!decomposed())
      return product_.run(c, {y.data, {rows, heads_ * width_}, {y.stride(0), 1}}, blas_workspace,
                          stream);
    if (gathers()) {
      const TensorView<T, 2> gathered(scratch, {rows, depth_});
      if (Status s = gather_columns<T>(c, columns_.data(), gathered, stream); !s.ok()) return s;
      c = gathered;
    }
    ProjectionArguments<T> args;
    args.x = c;
    args.coefficients = weight_.data();
    args.packing = packing_;
    args.basis_begin = basis_begin_;
    args.bias = bias_.data();
    args.out = y;
    return cuda::run(args, device, nullptr, 0, stream);
  }

  /// Where `absorbable`: to [rows, heads, depth] = q [rows, heads, width] Wᵀ of each head.
  Status absorb(const TensorView<const T, 3>& q, const TensorView<T, 3>& to,
                const DeviceInfo& device, void* blas_workspace, cudaStream_t stream) const {
    return by_head(AbsorbedProduct::kQuery, absorb_, q, to, device, blas_workspace, stream);
  }
  /// Where `absorbable`: to [rows, heads, width] = x [rows, heads, depth] W of each head.
  Status expand(const TensorView<const T, 3>& x, const TensorView<T, 3>& to,
                const DeviceInfo& device, void* blas_workspace, cudaStream_t stream) const {
    return by_head(AbsorbedProduct::kOutput, expand_, x, to, device, blas_workspace, stream);
  }

 private:
  Status by_head(AbsorbedProduct which, const Product<T>& plain, const TensorView<const T, 3>& x,
                 const TensorView<T, 3>& to, const DeviceInfo& device, void* blas_workspace,
                 cudaStream_t stream) const {
    if (!decomposed()) return plain.run_heads(x, to, blas_workspace, stream);
    AbsorbedArguments<T> args;
    args.product = which;
    args.x = x;
    args.coefficients = weight_.data();
    args.packing = packing_;
    args.basis_begin = basis_begin_;
    args.out = to;
    return cuda::run(args, device, nullptr, 0, stream);
  }

  std::int64_t depth_ = 0, heads_ = 0, width_ = 0, basis_begin_ = 0;
  PackedCoefficients packing_{.width = 0};
  DeviceArray<T> bias_, weight_;
  DeviceArray<std::int32_t> columns_;
  Product<T> product_, absorb_, expand_;  // of plain weights
};

}  // namespace bda::inline v0::cuda
