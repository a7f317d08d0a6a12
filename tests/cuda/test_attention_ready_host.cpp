#include <catch2/catch_test_macros.hpp>
#include <functional>
#include <string>

#include "bda/cuda/absorbed/arguments.hpp"
#include "bda/cuda/attention_ready/arguments.hpp"

// Argument checks and choices never touch the pointers: any aligned address will do, and no GPU.
namespace {

using bda::DType;
using bda::Status;
using bda::cuda::AbsorbedArguments;
using bda::cuda::AbsorbedConfig;
using bda::cuda::AbsorbedKernel;
using bda::cuda::AbsorbedProduct;
using bda::cuda::AbsorbedShape;
using bda::cuda::AttentionReadyConfig;
using bda::cuda::AttentionReadyKernel;
using bda::cuda::AttentionReadyShape;
using bda::cuda::DeviceInfo;
using bda::cuda::KvElement;
using bda::cuda::KvOutput;
using bda::cuda::KvStore;
using bda::cuda::PackedCoefficients;

using Ready = bda::cuda::AttentionReadyArguments<__half>;
using Absorbed = AbsorbedArguments<__half>;
constexpr std::int64_t kTokens = 5, kDim = 512, kWidth = 128, kRope = 64, kHeads = 3;
constexpr DeviceInfo kH100{9, 0, 132, 232448, true}, kA100{8, 0, 108, 166912, false};
alignas(128) __half memory[64];
std::int64_t slots[kTokens];

Ready good_ready() {
  Ready a;
  a.latent = {memory, {kTokens, kDim}};
  a.rope = {memory, {kTokens, kRope}, {kDim + kRope, 1}};  // behind the latent, as engines have it
  bda::cuda::KvSide<__half> side;
  side.coefficients = memory;
  side.packing = {PackedCoefficients::kVersion, DType::kF16, kDim - kWidth, kHeads, kWidth};
  a.key = a.value = side;
  a.key->out = KvOutput::token_major(memory, kHeads, kWidth + kRope);
  a.value->out = KvOutput::paged_hnd(memory, slots, 16, kHeads, kWidth);
  return a;
}

Absorbed good_absorbed(AbsorbedProduct product) {
  const bool query = product == AbsorbedProduct::kQuery;
  Absorbed a;
  a.product = product;
  a.x = {memory, {kTokens, kHeads, query ? kWidth : kDim}};
  a.coefficients = memory;
  a.packing = {PackedCoefficients::kVersion, DType::kF16, kDim - kWidth, kHeads, kWidth};
  a.out = {memory, {kTokens, kHeads, query ? kDim : kWidth}};
  return a;
}

template <class Arguments>
std::string message_after(Arguments a, const std::function<void(Arguments&)>& spoil) {
  spoil(a);
  const Status status = check_arguments(a);
  CHECK(status.code() == Status::Code::kInvalidArgument);
  return status.message();
}
std::string ready_after(const std::function<void(Ready&)>& spoil) {
  return message_after<Ready>(good_ready(), spoil);
}
std::string query_after(const std::function<void(Absorbed&)>& spoil) {
  return message_after<Absorbed>(good_absorbed(AbsorbedProduct::kQuery), spoil);
}

bool starts(const std::string& text, const std::string& with) { return text.rfind(with, 0) == 0; }

}  // namespace

TEST_CASE("good attention-ready arguments pass", "[cuda][ready][arguments]") {
  CHECK(check_arguments(good_ready()).ok());
  Ready a = good_ready();
  a.value.reset();
  CHECK(check_arguments(a).ok());
  a = good_ready();
  a.key.reset();
  a.rope = {};
  CHECK(check_arguments(a).ok());
  a = good_ready();
  a.key->out = KvOutput::head_major(memory, kTokens, kWidth + kRope);
  a.key->out.element = KvElement::kE4m3;
  CHECK(check_arguments(a).ok());
  a = good_ready();
  a.value->packing.width = 192;  // widths may differ
  a.value->packing.rest = 320;
  a.value->out = KvOutput::paged_nhd(memory, slots, 16, kHeads, 192);
  CHECK(check_arguments(a).ok());
  a = good_ready();
  a.latent.extents[0] = a.rope.extents[0] = 0;
  a.latent.data = nullptr;
  CHECK(check_arguments(a).ok());
}

TEST_CASE("attention-ready rules name their argument and both values", "[cuda][ready][arguments]") {
  CHECK(ready_after([](Ready& a) { a.key->packing.version = 7; }) ==
        "key.packing.version: expected the version this library packs = 1, got 7");
  CHECK(ready_after([](Ready& a) { a.value->out.page_stride = 100; }) ==
        "value.out.page_stride: expected at least a page's extent = 6144, got 100");
  CHECK(ready_after([](Ready& a) { a.value->packing.heads = 4; }) ==
        "value.packing.heads: expected equal to key.packing.heads = 3, got 4");
  const auto check = [](const char* name, const std::function<void(Ready&)>& spoil) {
    INFO(name);
    CHECK(starts(ready_after(spoil), std::string(name) + ":"));
  };
  check("key and value", [](Ready& a) {
    a.key.reset();
    a.value.reset();
  });
  check("rope.data", [](Ready& a) { a.key.reset(); });
  check("rope.extent(0)", [](Ready& a) { a.rope.extents[0] = 4; });
  check("rope.extent(1)", [](Ready& a) { a.rope.extents[1] = 0; });
  check("rope.extent(1)", [](Ready& a) {
    a.rope.extents[1] = 60;
    a.key->out = KvOutput::token_major(memory, kHeads, 192);
  });
  check("rope.stride(1)", [](Ready& a) { a.rope.strides[1] = 2; });
  check("rope.stride(0)", [](Ready& a) { a.rope.strides[0] = 8; });
  check("rope.stride(0)", [](Ready& a) { a.rope.strides[0] += 4; });
  check("rope.data modulo 16", [](Ready& a) { a.rope.data += 1; });
  check("latent.extent(0)", [](Ready& a) { a.latent.extents[0] = -1; });
  check("latent.stride(0)", [](Ready& a) { a.latent.strides[0] = 8; });
  check("latent.stride(0)", [](Ready& a) { a.latent.strides[0] += 4; });
  check("latent.stride(1)", [](Ready& a) { a.latent.strides[1] = 2; });
  check("latent.data", [](Ready& a) { a.latent.data = nullptr; });
  check("latent.data modulo 16", [](Ready& a) { a.latent.data += 1; });
  check("key.packing.rest + key.packing.width", [](Ready& a) { a.latent.extents[1] = 504; });
  check("key.packing.dtype", [](Ready& a) { a.key->packing.dtype = DType::kBF16; });
  check("key.packing.width", [](Ready& a) { a.key->packing.width = 0; });
  check("key.packing.rest", [](Ready& a) { a.key->packing.rest = 0; });
  check("value.basis_begin", [](Ready& a) { a.value->basis_begin = 385; });
  check("value.basis_begin", [](Ready& a) { a.value->basis_begin = 4; });
  check("value.coefficients", [](Ready& a) { a.value->coefficients = nullptr; });
  check("value.coefficients modulo 128", [](Ready& a) { a.value->coefficients += 8; });
  check("value.bias modulo 16", [](Ready& a) { a.value->bias = memory + 1; });
  check("key.out.data", [](Ready& a) { a.key->out.data = nullptr; });
  check("key.out.data modulo 16", [](Ready& a) { a.key->out.data = memory + 4; });
  check("key.out.head_stride", [](Ready& a) { a.key->out.head_stride = kWidth; });  // no rope
  check("key.out.head_stride", [](Ready& a) {
    a.key->out.head_stride += 4;
    a.key->out.token_stride += 16;
  });
  check("key.out.token_stride", [](Ready& a) { a.key->out.token_stride += 4; });
  check("key.out.token_stride", [](Ready& a) {  // 16 bytes of e4m3 are 16 elements
    a.key->out.element = KvElement::kE4m3;
    a.key->out.token_stride += 8;
  });
  check("value.out.page_size", [](Ready& a) { a.value->out.page_size = 0; });
  check("value.out.page_stride", [](Ready& a) { a.value->out.page_stride += 4; });
}

TEST_CASE("one launch where the shape allows it", "[cuda][ready][config]") {
  const AttentionReadyShape shape = [] {
    AttentionReadyShape s = good_ready().shape();
    s.value.paged = false;
    return s;
  }();
  AttentionReadyConfig config = pick(shape, kH100);
  CHECK(config.kernel == AttentionReadyKernel::kSm90Resident);
  CHECK(config.store == KvStore::kTensor);
  CHECK(validate(config, shape, kH100).ok());
  CHECK(pick(good_ready().shape(), kH100).store == KvStore::kRows);
  config.store = KvStore::kTensor;
  CHECK(validate(config, good_ready().shape(), kH100).message() ==
        "config.store: expected rows (as KvStore) for pages and e4m3 = 1, got 0");

  const auto falls_back = [&](const char* why, const std::function<void(AttentionReadyShape&)>& to,
                              const DeviceInfo& device = kH100) {
    AttentionReadyShape s = shape;
    to(s);
    const AttentionReadyConfig c = pick(s, device);
    INFO(why);
    CHECK(c.kernel == AttentionReadyKernel::kProjectThenPlace);
    CHECK(std::string(c.why) == why);
    CHECK(validate(c, s, device).ok());
    AttentionReadyConfig forced = pick(shape, kH100);
    CHECK(validate(forced, s, device).code() == Status::Code::kUnsupported);
    CHECK(std::string(validate(forced, s, device).argument()) == why);
  };
  falls_back(
      "compute capability", [](AttentionReadyShape&) {}, kA100);
  falls_back("packing.width", [](AttentionReadyShape& s) { s.value.width = 64; });
  falls_back("latent.extent(1)", [](AttentionReadyShape& s) { s.kv_dim = 768; });
  falls_back("basis_begin", [](AttentionReadyShape& s) { s.key.basis_begin = 8; });
  falls_back("bias", [](AttentionReadyShape& s) { s.value.bias = true; });
  falls_back("rope.extent(1)", [](AttentionReadyShape& s) { s.rope_width = 72; });
  falls_back("rope.extent(1)", [](AttentionReadyShape& s) {
    s.rope_width = 8;
    s.key.element = s.value.element = KvElement::kE4m3;
  });
  falls_back("value.out.element",
             [](AttentionReadyShape& s) { s.value.element = KvElement::kE4m3; });
  falls_back("bytes of an element", [](AttentionReadyShape& s) { s.dtype = DType::kF32; });
  AttentionReadyShape value_alone = shape;
  value_alone.key = {};
  value_alone.rope_width = 0;
  CHECK(pick(value_alone, kH100).kernel == AttentionReadyKernel::kSm90Resident);
}

TEST_CASE("absorbed rules name their argument and both values", "[cuda][absorbed][arguments]") {
  CHECK(check_arguments(good_absorbed(AbsorbedProduct::kQuery)).ok());
  CHECK(check_arguments(good_absorbed(AbsorbedProduct::kOutput)).ok());
  CHECK(query_after([](Absorbed& a) { a.out.extents[2] = 504; }) ==
        "out.extent(2): expected equal to packing.rest + packing.width = 512, got 504");
  const auto check = [](const char* name, const std::function<void(Absorbed&)>& spoil) {
    INFO(name);
    CHECK(starts(query_after(spoil), std::string(name) + ":"));
  };
  check("packing.version", [](Absorbed& a) { a.packing.version = 0; });
  check("packing.dtype", [](Absorbed& a) { a.packing.dtype = DType::kBF16; });
  check("packing.heads", [](Absorbed& a) { a.packing.heads = 0; });
  check("packing.width", [](Absorbed& a) { a.packing.width = 0; });
  check("packing.rest", [](Absorbed& a) { a.packing.rest = -8; });
  check("x.extent(0)", [](Absorbed& a) { a.x.extents[0] = 65536; });
  check("x.extent(1)", [](Absorbed& a) { a.x.extents[1] = 2; });
  check("x.extent(2)", [](Absorbed& a) { a.x.extents[2] = kDim; });
  check("basis_begin", [](Absorbed& a) { a.basis_begin = 385; });
  check("basis_begin", [](Absorbed& a) { a.basis_begin = 4; });
  check("bias", [](Absorbed& a) { a.bias = memory; });
  check("out.extent(0)", [](Absorbed& a) { a.out.extents[0] = 6; });
  check("out.extent(1)", [](Absorbed& a) { a.out.extents[1] = 2; });
  check("x.stride(2)", [](Absorbed& a) { a.x.strides[2] = 2; });
  check("out.stride(2)", [](Absorbed& a) { a.out.strides[2] = 2; });
  check("x.stride(0) and x.stride(1)", [](Absorbed& a) { a.x.strides[1] = -8; });
  check("out.stride(1)", [](Absorbed& a) { a.out.strides[1] = kWidth; });
  check("x.data", [](Absorbed& a) { a.x.data = nullptr; });
  check("coefficients", [](Absorbed& a) { a.coefficients = nullptr; });
  check("out.data", [](Absorbed& a) { a.out.data = nullptr; });
  check("x.stride(0)", [](Absorbed& a) { a.x.strides[0] += 4; });
  check("x.stride(1)", [](Absorbed& a) { a.x.strides[1] += 4; });
  check("out.stride(0)", [](Absorbed& a) { a.out.strides[0] += 4; });
  check("x.data modulo 16", [](Absorbed& a) { a.x.data += 1; });
  check("out.data modulo 16", [](Absorbed& a) { a.out.data += 1; });
  check("coefficients modulo 128", [](Absorbed& a) { a.coefficients += 8; });
}

TEST_CASE("absorbed products pick a configuration that fits", "[cuda][absorbed][config]") {
  for (AbsorbedProduct product : {AbsorbedProduct::kQuery, AbsorbedProduct::kOutput})
    for (std::int64_t tokens : {1, 16, 17, 33, 64, 65, 256})
      for (std::int64_t heads : {1, 16, 128}) {
        const AbsorbedShape shape{product, DType::kBF16, tokens, 512, 128, heads, 384};
        const AbsorbedConfig config = pick(shape, kH100);
        CHECK(config.kernel == AbsorbedKernel::kSm90);
        CHECK(validate(config, shape, kH100).ok());
        CHECK(pick(shape, kA100).kernel == AbsorbedKernel::kSimt);
      }
  AbsorbedShape shape{AbsorbedProduct::kOutput, DType::kBF16, 4, 512, 128, 16, 0};
  CHECK(pick(shape, kH100).tile_tokens == 16);
  shape.basis_begin = 8;
  CHECK(pick(shape, kH100).kernel == AbsorbedKernel::kSimt);
  CHECK(std::string(pick(shape, kH100).why) == "basis_begin");
  shape.basis_begin = 0;
  shape.kv_dim = 4096;  // C of one head and 64 columns is more than shared memory
  CHECK(pick(shape, kH100).kernel == AbsorbedKernel::kSimt);
  shape.kv_dim = 512;
  AbsorbedConfig config = pick(shape, kH100);
  config.tile_blocks = 3;
  CHECK(validate(config, shape, kH100).message() ==
        "config.tile_blocks: expected a divisor of a head's blocks = 2, got 3");
  config.tile_blocks = 1;
  config.tile_tokens = 8;
  CHECK(validate(config, shape, kH100).code() == Status::Code::kUnsupported);
}
