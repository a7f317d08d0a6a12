#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <functional>
#include <string>

#include "bda/cuda.hpp"

// What the attention step decides and refuses on the host.
namespace {

using bda::DType;
using bda::Status;
using bda::cuda::AttendArguments;
using bda::cuda::AttendConfig;
using bda::cuda::AttendKernel;
using bda::cuda::AttendShape;
using bda::cuda::DeviceInfo;

constexpr DeviceInfo kH100{9, 0, 132, 232448, true};
constexpr DeviceInfo kA100{8, 0, 108, 166912, false};

alignas(16) __half operands[64];  // never read: nothing here launches

AttendArguments<__half> valid() {
  AttendArguments<__half> a;
  a.q = {operands, {2, 10, 4, 128}};
  a.k = {operands, {2, 12, 2, 128}};
  a.v = {operands, {2, 12, 2, 64}};
  a.out = {operands, {2, 10, 4, 64}};
  return a;
}

void refused(const std::string& name, const std::function<void(AttendArguments<__half>&)>& spoil) {
  AttendArguments<__half> a = valid();
  spoil(a);
  const Status status = check_arguments(a);
  INFO(name << ": " << status.message());
  CHECK_FALSE(status.ok());
  CHECK(status.message().find(name) != std::string::npos);
}

}  // namespace

TEST_CASE("attention arguments: what is refused names the value", "[cuda][attend]") {
  REQUIRE(check_arguments(valid()).ok());
  refused("q.extent(0)", [](auto& a) { a.q.extents[0] = 70000; });
  refused("k.extent(0)", [](auto& a) { a.k.extents[0] = 3; });
  refused("v.extent(0)", [](auto& a) { a.v.extents[0] = 3; });
  refused("v.extent(1)", [](auto& a) { a.v.extents[1] = 11; });
  refused("k.extent(2)", [](auto& a) { a.k.extents[2] = 3; });
  refused("v.extent(2)", [](auto& a) { a.v.extents[2] = 1; });
  refused("k.extent(3)", [](auto& a) { a.k.extents[3] = 64; });
  refused("q.extent(3)", [](auto& a) { a.q.extents[3] = 200; });
  const auto latent = [](auto& a, std::int64_t qk, std::int64_t v) {
    a.q.extents[3] = a.k.extents[3] = qk;
    a.v = a.k;
    a.v.extents[3] = a.out.extents[3] = v;
  };
  refused("q.extent(3)", [&](auto& a) { latent(a, 584, 512); });
  refused("v.extent(3)", [&](auto& a) { latent(a, 576, 520); });
  refused("v.extent(3)", [&](auto& a) { latent(a, 120, 128); });
  refused("v.data", [](auto& a) { a.force = {AttendKernel::kSm90Latent, 1, ""}; });
  refused("q.extent(3)", [](auto& a) { a.q.extents[3] = 12; });
  refused("v.extent(3)", [](auto& a) { a.v.extents[3] = 192; });
  refused("out.extent(1)", [](auto& a) { a.out.extents[1] = 9; });
  refused("out.extent(2)", [](auto& a) { a.out.extents[2] = 2; });
  refused("out.extent(3)", [](auto& a) { a.out.extents[3] = 128; });
  refused("scale", [](auto& a) { a.scale = 0; });
  refused("softcap", [](auto& a) { a.softcap = -1; });
  refused("window", [](auto& a) { a.window = -1; });
  refused("q.data", [](auto& a) { a.q.data = nullptr; });
  refused("k.data", [](auto& a) { a.k.data = operands + 1; });
  refused("v.data", [](auto& a) { a.v.data = nullptr; });
  refused("out.data", [](auto& a) { a.out.data = operands + 4; });
  refused("q.stride(3)", [](auto& a) { a.q.strides[3] = 2; });
  refused("k.stride(1)", [](auto& a) { a.k.strides[1] = 257; });
  refused("v.stride(2)", [](auto& a) { a.v.strides[2] = 60; });
  refused("out.stride(0)", [](auto& a) { a.out.strides[0] = 4; });
}

TEST_CASE("attention: the choice is one its kernel accepts", "[cuda][attend]") {
  for (const DeviceInfo& device : {kH100, kA100})
    for (std::int64_t batch : {1, 16})
      for (std::int64_t queries : {1, 4, 17, 4096})
        for (std::int64_t keys : {0, 1, 64, 8192, 1000000})
          for (std::int64_t kv_heads : {1, 16}) {
            const AttendShape s{DType::kF16, batch, queries, keys, 16, kv_heads, 192, 128};
            const AttendConfig c = pick(s, device);
            CHECK(validate(c, s, device).ok());
            CHECK(c.why[0] != 0);
          }
  const AttendShape prefill{DType::kBF16, 1, 4096, 4096, 16, 16, 128, 128};
  CHECK(pick(prefill, kH100).kernel == AttendKernel::kSm90Tile);
  CHECK(pick(prefill, kA100).kernel == AttendKernel::kRows);
  const AttendShape decode{DType::kBF16, 16, 1, 8192, 16, 16, 128, 128};
  CHECK(pick(decode, kH100).kernel == AttendKernel::kRows);
  CHECK(pick(decode, kH100).splits > 1);
  for (std::int64_t batch : {1, 32, 200})
    for (std::int64_t keys : {0, 1, 8192, 1000000}) {
      const AttendShape latent{DType::kBF16, batch, 1, keys, 128, 1, 576, 512};
      CHECK(pick(latent, kH100).kernel == AttendKernel::kSm90Latent);
      CHECK(validate(pick(latent, kH100), latent, kH100).ok());
      CHECK_FALSE(validate(pick(latent, kA100), latent, kA100).ok());
      CHECK_FALSE(validate({AttendKernel::kRows, 1, ""}, latent, kH100).ok());
    }
  CHECK(pick(AttendShape{DType::kBF16, 1, 1, 8192, 128, 1, 576, 512}, kH100).splits > 16);
  CHECK_FALSE(validate({AttendKernel::kSm90Tile, 1, ""}, prefill, kA100).ok());
  CHECK_FALSE(validate({AttendKernel::kRows, 0, ""}, decode, kH100).ok());
  CHECK_FALSE(validate({AttendKernel::kSm90Tile, 2, ""}, prefill, kH100).ok());
}
