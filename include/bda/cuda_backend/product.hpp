#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "bda/core/error.hpp"
#include "bda/core/status.hpp"
#include "bda/core/tensor_view.hpp"
#include "bda/cuda/element.hpp"

namespace bda::inline v0::cuda {

constexpr std::size_t kBlasWorkspaceBytes = std::size_t{32} << 20;

/// cublasLt's handle, shared by the products of a layer.
class BlasHandle {
 public:
  BlasHandle() {
    if (const cublasStatus_t status = cublasLtCreate(&handle_); status != CUBLAS_STATUS_SUCCESS)
      throw Error("cublasLtCreate", "success", std::to_string(status));
  }
  ~BlasHandle() { cublasLtDestroy(handle_); }
  BlasHandle(const BlasHandle&) = delete;
  BlasHandle& operator=(const BlasHandle&) = delete;
  [[nodiscard]] cublasLtHandle_t get() const { return handle_; }

 private:
  cublasLtHandle_t handle_ = nullptr;
};

/// How the weights of a product lie in device memory, in elements; a product a head.
struct ProductWeights {
  std::int64_t depth = 0, columns = 0;
  std::int64_t stride = 0;  // between rows
  bool transposed = false;  // [columns, depth]
  std::int64_t heads = 1;
  std::int64_t head_stride = 0;  // between heads
};

/// y = x W (+ bias), y of T or float, sums in fp32, by cublasLt, whose choice of algorithm is asked
/// for once for each number of rows and set of strides, and kept. May be run from several threads.
template <class T, class Out = T>
class Product {
 public:
  Product() = default;
  /// One product with W [depth, columns], dense.
  Product(std::shared_ptr<const BlasHandle> handle, const T* weight, const T* bias,
          std::int64_t depth, std::int64_t columns)
      : handle_(std::move(handle)), weight_(weight), bias_(bias), shape_{depth, columns, columns} {}
  /// A product a head, without bias.
  Product(std::shared_ptr<const BlasHandle> handle, const T* weight, const ProductWeights& shape)
      : handle_(std::move(handle)), weight_(weight), shape_(shape) {}

  [[nodiscard]] std::int64_t depth() const { return shape_.depth; }
  [[nodiscard]] std::int64_t columns() const { return shape_.columns; }

  /// [rows, depth] -> [rows, columns]; `workspace` holds kBlasWorkspaceBytes.
  Status run(const TensorView<const T, 2>& x, const TensorView<Out, 2>& y, void* workspace,
             cudaStream_t stream) const {
    return run_heads(
        TensorView<const T, 3>(x.data, {x.extent(0), 1, x.extent(1)}, {x.stride(0), 0, 1}),
        TensorView<Out, 3>(y.data, {y.extent(0), 1, y.extent(1)}, {y.stride(0), 0, 1}), workspace,
        stream);
  }
  /// [rows, heads, depth] -> [rows, heads, columns].
  Status run_heads(const TensorView<const T, 3>& x, const TensorView<Out, 3>& y, void* workspace,
                   cudaStream_t stream) const {
    if (x.extent(0) == 0) return {};
    Plan* plan = nullptr;
    if (Status s = find({x.extent(0), x.stride(0), x.stride(1), y.stride(0), y.stride(1)}, plan);
        !s.ok())
      return s;
    const float one = 1, zero = 0;
    const cublasStatus_t status = cublasLtMatmul(
        handle_->get(), plan->operation, &one, weight_, plan->a, x.data, plan->b, &zero, y.data,
        plan->d, y.data, plan->d, &plan->algorithm, workspace, kBlasWorkspaceBytes, stream);
    return made("cublasLtMatmul", status);
  }

 private:
  template <class U>
  static constexpr cudaDataType_t kType = Element<U>::dtype == DType::kF16    ? CUDA_R_16F
                                          : Element<U>::dtype == DType::kBF16 ? CUDA_R_16BF
                                                                              : CUDA_R_32F;

  /// cublasLt sees the transposed problem, column-major: y^T = W^T x^T.
  struct Plan {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
    Plan() = default;
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;
    ~Plan() {
      if (operation != nullptr) cublasLtMatmulDescDestroy(operation);
      for (cublasLtMatrixLayout_t layout : {a, b, d})
        if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
  };
  using Key = std::array<std::int64_t, 5>;  // rows; token and head stride of x and of y
  struct Plans {
    std::mutex mutex;
    std::map<Key, Plan> by_shape;
  };

  static Status made(const char* call, cublasStatus_t status) {
    return status == CUBLAS_STATUS_SUCCESS
               ? Status{}
               : Status::error(Status::Code::kDeviceError, call, "success (as cublasStatus_t)",
                               CUBLAS_STATUS_SUCCESS, status);
  }

  Status find(const Key& key, Plan*& plan) const {
    const std::lock_guard lock(plans_->mutex);
    if (const auto it = plans_->by_shape.find(key); it != plans_->by_shape.end()) {
      plan = &it->second;
      return {};
    }
    plan = &plans_->by_shape[key];
    const Status status = prepare(key, *plan);
    if (!status.ok()) plans_->by_shape.erase(key);
    return status;
  }

  Status prepare(const Key& key, Plan& plan) const {
    const auto [rows, x_stride, x_head_stride, y_stride, y_head_stride] = key;
    cublasStatus_t status =
        cublasLtMatmulDescCreate(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const auto layout = [&](cublasLtMatrixLayout_t& made, cudaDataType_t type, std::int64_t height,
                            std::int64_t width, std::int64_t stride, std::int64_t head_stride) {
      if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatrixLayoutCreate(&made, type, static_cast<std::uint64_t>(height),
                                            static_cast<std::uint64_t>(width), stride);
      if (shape_.heads == 1) return;
      const auto heads = static_cast<std::int32_t>(shape_.heads);
      if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &heads,
                                                  sizeof heads);
      if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                  &head_stride, sizeof head_stride);
    };
    const auto [depth, columns, stride, transposed, heads, head_stride] = shape_;
    layout(plan.a, kType<T>, transposed ? depth : columns, transposed ? columns : depth, stride,
           head_stride);
    layout(plan.b, kType<T>, depth, rows, x_stride, x_head_stride);
    layout(plan.d, kType<Out>, columns, rows, y_stride, y_head_stride);
    if (status == CUBLAS_STATUS_SUCCESS && transposed) {
      const cublasOperation_t operation = CUBLAS_OP_T;
      status = cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                              &operation, sizeof operation);
    }
    if (status == CUBLAS_STATUS_SUCCESS && bias_ != nullptr) {
      const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      status = cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE,
                                              &epilogue, sizeof epilogue);
      if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                                &bias_, sizeof bias_);
    }
    cublasLtMatmulPreference_t preference = nullptr;
    if (status == CUBLAS_STATUS_SUCCESS) status = cublasLtMatmulPreferenceCreate(&preference);
    if (status == CUBLAS_STATUS_SUCCESS)
      status =
          cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                               &kBlasWorkspaceBytes, sizeof kBlasWorkspaceBytes);
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    if (status == CUBLAS_STATUS_SUCCESS)
      status = cublasLtMatmulAlgoGetHeuristic(handle_->get(), plan.operation, plan.a, plan.b,
                                              plan.d, plan.d, preference, 1, &result, &found);
    if (preference != nullptr) cublasLtMatmulPreferenceDestroy(preference);
    if (status == CUBLAS_STATUS_SUCCESS && found == 0) status = CUBLAS_STATUS_NOT_SUPPORTED;
    plan.algorithm = result.algo;
    return made("cublasLt's choice of algorithm", status);
  }

  std::shared_ptr<const BlasHandle> handle_;
  const T* weight_ = nullptr;
  const T* bias_ = nullptr;
  ProductWeights shape_{};
  std::shared_ptr<Plans> plans_ = std::make_shared<Plans>();
};

}  // namespace bda::inline v0::cuda
