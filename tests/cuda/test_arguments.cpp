#include <catch2/catch_test_macros.hpp>
#include <functional>
#include <string>

#include "bda/cuda/projection/arguments.hpp"

// Argument checks never touch the pointers: any aligned address will do.
namespace {

using Arguments = bda::cuda::ProjectionArguments<__half>;
constexpr std::int64_t kTokens = 5, kDim = 512, kWidth = 128, kHeads = 3;

Arguments good() {
  alignas(128) static __half memory[64];
  Arguments a;
  a.x = {memory, {kTokens, kDim}};
  a.coefficients = memory;
  a.packing = {bda::cuda::PackedCoefficients::kVersion, bda::DType::kF16, kDim - kWidth, kHeads,
               kWidth};
  a.out = {memory, {kTokens, kHeads, kWidth}};
  return a;
}

std::string message_after(const std::function<void(Arguments&)>& spoil) {
  Arguments a = good();
  spoil(a);
  const bda::Status status = check_arguments(a);
  CHECK(status.code() == bda::Status::Code::kInvalidArgument);
  return status.message();
}

bool starts(const std::string& text, const std::string& with) { return text.rfind(with, 0) == 0; }

}  // namespace

TEST_CASE("good arguments pass", "[cuda][arguments]") {
  CHECK(check_arguments(good()).ok());
  Arguments a = good();
  a.out = {a.out.data, {kTokens, kHeads, kWidth}, {kWidth, kTokens * kWidth, 1}};  // head-major
  CHECK(check_arguments(a).ok());
  a = good();
  a.x.strides = {kDim + 8, 1};
  a.out.strides = {kHeads * kWidth + 64, kWidth, 1};
  a.basis_begin = kDim - kWidth;
  a.bias = a.coefficients;
  CHECK(check_arguments(a).ok());
  a = good();
  a.x.extents[0] = a.out.extents[0] = 0;
  a.x.data = nullptr;
  CHECK(check_arguments(a).ok());
}

TEST_CASE("each rule names its argument and both values", "[cuda][arguments]") {
  CHECK(message_after([](Arguments& a) { a.packing.version = 7; }) ==
        "packing.version: expected the version this library packs = 1, got 7");
  CHECK(starts(message_after([](Arguments& a) { a.packing.dtype = bda::DType::kBF16; }),
               "packing.dtype"));
  CHECK(starts(message_after([](Arguments& a) { a.packing.heads = 0; }), "packing.heads"));
  CHECK(starts(message_after([](Arguments& a) { a.packing.width = 0; }), "packing.width"));
  CHECK(starts(message_after([](Arguments& a) { a.packing.rest = 0; }), "packing.rest"));
  CHECK(
      starts(message_after([](Arguments& a) { a.packing.heads = 1 << 30; }), "packing.columns()"));
  CHECK(starts(message_after([](Arguments& a) { a.x.extents[0] = std::int64_t{1} << 40; }),
               "x.extent(0)"));
  CHECK(message_after([](Arguments& a) { a.x.extents[1] = 500; }) ==
        "x.extent(1): expected equal to packing.rest + packing.width = 512, got 500");
  CHECK(message_after([](Arguments& a) { a.basis_begin = 392; }) ==
        "basis_begin: expected from 0 to packing.rest = 384, got 392");
  CHECK(starts(message_after([](Arguments& a) { a.basis_begin = -8; }), "basis_begin"));
  CHECK(starts(message_after([](Arguments& a) { a.out.extents[0] = 4; }), "out.extent(0)"));
  CHECK(starts(message_after([](Arguments& a) { a.out.extents[1] = 4; }), "out.extent(1)"));
  CHECK(starts(message_after([](Arguments& a) { a.out.extents[2] = 64; }), "out.extent(2)"));
  CHECK(starts(message_after([](Arguments& a) { a.x.strides[1] = 2; }), "x.stride(1)"));
  CHECK(starts(message_after([](Arguments& a) { a.out.strides[2] = 2; }), "out.stride(2)"));
  CHECK(starts(message_after([](Arguments& a) { a.x.strides[0] = 504; }), "x.stride(0)"));
  CHECK(starts(message_after([](Arguments& a) {
                 a.out.strides = {kWidth, kWidth, 1};
               }),
               "out.stride(1)"));
  CHECK(starts(message_after([](Arguments& a) { a.x.data = nullptr; }), "x.data"));
  CHECK(starts(message_after([](Arguments& a) { a.coefficients = nullptr; }), "coefficients"));
  CHECK(starts(message_after([](Arguments& a) { a.out.data = nullptr; }), "out.data"));
}

TEST_CASE("16-bit types need 16-byte pieces", "[cuda][arguments]") {
  CHECK(message_after([](Arguments& a) { a.basis_begin = 4; }) ==
        "basis_begin: expected a multiple of = 8, got 4");
  CHECK(starts(message_after([](Arguments& a) { a.x.strides[0] = 513; }), "x.stride(0)"));
  CHECK(starts(message_after([](Arguments& a) { a.out.strides[0] += 4; }), "out.stride(0)"));
  CHECK(starts(message_after([](Arguments& a) {
                 a.out.strides = {kHeads * 132, 132, 1};
               }),
               "out.stride("));
  CHECK(starts(message_after([](Arguments& a) { a.x.data += 1; }), "x.data modulo 16"));
  CHECK(starts(message_after([](Arguments& a) { a.out.data += 4; }), "out.data modulo 16"));
  CHECK(starts(message_after([](Arguments& a) { a.coefficients += 8; }), "coefficients modulo"));
  CHECK(starts(message_after([](Arguments& a) { a.bias = a.coefficients + 1; }), "bias modulo"));
  CHECK(starts(message_after([](Arguments& a) {
                 a.packing.width = 124;
                 a.packing.rest = 388;
                 a.out = {a.out.data, {kTokens, kHeads, 124}};
               }),
               "packing.width"));
}
