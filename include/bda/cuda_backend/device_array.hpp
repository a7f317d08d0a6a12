#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "bda/core/error.hpp"

namespace bda::inline v0::cuda {

/// Device memory that belongs to one object, for weights and caches: made at set-up, never while a
/// layer runs. Throws bda::Error where there is none left.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(std::int64_t count) : count_(count) {
    if (count > 0) check(cudaMalloc(reinterpret_cast<void**>(&data_), bytes()));
  }
  /// A copy of `count` values of the host, of any type of the same size.
  template <class Host>
  DeviceArray(const Host* values, std::int64_t count) : DeviceArray(count) {
    static_assert(sizeof(Host) == sizeof(T));
    if (count > 0) check(cudaMemcpy(data_, values, bytes(), cudaMemcpyHostToDevice));
  }
  ~DeviceArray() {
    if (data_ != nullptr) cudaFree(data_);
  }
  DeviceArray(DeviceArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }

  /// Null where empty.
  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::int64_t size() const { return count_; }
  [[nodiscard]] std::size_t bytes() const { return static_cast<std::size_t>(count_) * sizeof(T); }
  void zero() {
    if (count_ > 0) check(cudaMemset(data_, 0, bytes()));
  }

 private:
  static void check(cudaError_t error) {
    if (error != cudaSuccess) {
      (void)cudaGetLastError();
      throw Error("device memory", "success", cudaGetErrorString(error));
    }
  }
  T* data_ = nullptr;
  std::int64_t count_ = 0;
};

}  // namespace bda::inline v0::cuda
