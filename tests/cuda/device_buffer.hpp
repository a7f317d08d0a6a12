#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "reference.hpp"

// What the GPU tests have in common.
#define REQUIRE_CUDA(call) REQUIRE((call) == cudaSuccess)

namespace bda_test {

inline bool no_device() {
  int count = 0;
  const bool none = cudaGetDeviceCount(&count) != cudaSuccess || count == 0;
  (void)cudaGetLastError();
  return none;
}
#define SKIP_WITHOUT_DEVICE() \
  if (bda_test::no_device()) SKIP("no CUDA device")

/// Sets device memory, and is done on return: streams that do not wait for the default one may use
/// it at once.
inline void set_bytes(void* data, int value, std::size_t bytes) {
  REQUIRE_CUDA(cudaMemset(data, value, bytes));
  REQUIRE_CUDA(cudaDeviceSynchronize());
}

/// Where `a` and `b` first differ; -1 for nowhere.
inline std::int64_t first_difference(const std::vector<std::uint8_t>& a,
                                     const std::vector<std::uint8_t>& b) {
  const auto [at, end] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  return at == a.end() && end == b.end() ? -1 : at - a.begin();
}

/// Device memory that begins as poison.
template <class T>
struct DeviceBuffer {
  explicit DeviceBuffer(std::int64_t count) : size(count) {
    REQUIRE_CUDA(cudaMalloc(reinterpret_cast<void**>(&data), bytes()));
    set_bytes(data, kPoison, bytes());
  }
  explicit DeviceBuffer(const std::vector<T>& values)
      : DeviceBuffer(static_cast<std::int64_t>(values.size())) {
    REQUIRE_CUDA(cudaMemcpy(data, values.data(), bytes(), cudaMemcpyHostToDevice));
  }
  ~DeviceBuffer() { cudaFree(data); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  [[nodiscard]] std::size_t bytes() const { return static_cast<std::size_t>(size) * sizeof(T); }
  [[nodiscard]] std::vector<std::uint8_t> host() const {
    std::vector<std::uint8_t> copy(bytes());
    REQUIRE_CUDA(cudaMemcpy(copy.data(), data, bytes(), cudaMemcpyDeviceToHost));
    return copy;
  }
  void poison() { set_bytes(data, kPoison, bytes()); }
  T* data = nullptr;
  std::int64_t size;
};

}  // namespace bda_test
