// A program outside the project: plain C++ that calls a kernel compiled beside it. Without a GPU it
// still compiles and links both, and asks the library what it can answer on the host.
#include <bda/cuda.hpp>
#include <cmath>
#include <cstring>

int main() {
  const bda::cuda::ProjectionArguments<__half> none;
  if (std::strcmp(check_arguments(none).argument(), "packing.dtype") == 0) return 1;
  if (check_arguments(none).ok()) return 1;

  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return 0;
  void* memory = nullptr;
  if (cudaMallocManaged(&memory, 16 * sizeof(__half)) != cudaSuccess) return 2;
  __half *const x = static_cast<__half*>(memory), *const weight = x + 8;
  for (int i = 0; i < 8; ++i) x[i] = __float2half(3.0f), weight[i] = __float2half(2.0f);
  const bda::TensorView<__half, 4> rows(x, {1, 1, 1, 8});
  if (!bda::cuda::rms_norm<__half>(rows, weight, 0.0f, rows, nullptr)) return 3;
  if (cudaDeviceSynchronize() != cudaSuccess) return 4;
  for (int i = 0; i < 8; ++i)
    if (std::abs(__half2float(x[i]) - 2.0f) > 0x1p-9f) return 5;  // one rounding of half
  return 0;
}
