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

/// y = x W (+ bias), W [depth, columns] dense in device memory, y of T or float, sums in fp32, by
/// cublasLt: its
/// choice of algorithm is asked for once for each number of rows and pair of strides, and kept. May
/// be run from several threads.
template <class T, class Out = T>
class Product {
 public:
  Product() = default;
  Product(std::shared_ptr<const BlasHandle> handle, const T* weight, const T* bias,
          std::int64_t depth, std::int64_t columns)
      : handle_(std::move(handle)),
        weight_(weight),
        bias_(bias),
        depth_(depth),
        columns_(columns) {}

  [[nodiscard]] std::int64_t depth() const { return depth_; }
  [[nodiscard]] std::int64_t columns() const { return columns_; }

  /// `workspace` holds kBlasWorkspaceBytes.
  Status run(const TensorView<const T, 2>& x, const TensorView<Out, 2>& y, void* workspace,
             cudaStream_t stream) const {
    if (x.extent(0) == 0) return {};
    Plan* plan = nullptr;
    if (Status s = find(x.extent(0), x.stride(0), y.stride(0), plan); !s.ok()) return s;
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
  struct Plans {
    std::mutex mutex;
    std::map<std::array<std::int64_t, 3>, Plan> by_shape;
  };

  static Status made(const char* call, cublasStatus_t status) {
    return status == CUBLAS_STATUS_SUCCESS
               ? Status{}
               : Status::error(Status::Code::kDeviceError, call, "success (as cublasStatus_t)",
                               CUBLAS_STATUS_SUCCESS, status);
  }

  Status find(std::int64_t rows, std::int64_t x_stride, std::int64_t y_stride, Plan*& plan) const {
    const std::lock_guard lock(plans_->mutex);
    const std::array key{rows, x_stride, y_stride};
    if (const auto it = plans_->by_shape.find(key); it != plans_->by_shape.end()) {
      plan = &it->second;
      return {};
    }
    plan = &plans_->by_shape[key];
    const Status status = prepare(rows, x_stride, y_stride, *plan);
    if (!status.ok()) plans_->by_shape.erase(key);
    return status;
  }

  Status prepare(std::int64_t rows, std::int64_t x_stride, std::int64_t y_stride,
                 Plan& plan) const {
    const auto u = [](std::int64_t n) { return static_cast<std::uint64_t>(n); };
    cublasStatus_t status =
        cublasLtMatmulDescCreate(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (status == CUBLAS_STATUS_SUCCESS)
      status = cublasLtMatrixLayoutCreate(&plan.a, kType<T>, u(columns_), u(depth_), columns_);
    if (status == CUBLAS_STATUS_SUCCESS)
      status = cublasLtMatrixLayoutCreate(&plan.b, kType<T>, u(depth_), u(rows), x_stride);
    if (status == CUBLAS_STATUS_SUCCESS)
      status = cublasLtMatrixLayoutCreate(&plan.d, kType<Out>, u(columns_), u(rows), y_stride);
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
  std::int64_t depth_ = 0, columns_ = 0;
  std::shared_ptr<Plans> plans_ = std::make_shared<Plans>();
};

}  // namespace bda::inline v0::cuda
