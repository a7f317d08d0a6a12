// Keys and values as an attention kernel reads them, in one launch, against what engines run today:
// the whole projection by cublasLt, then copies that put the rope part behind every head's keys;
// and the products of absorbed decoding against cublasLt's strided-batched products of the original
// absorbed weights.
//
// The contest is that of cuda_contest.cuh; medians over the rounds become the counters. Weights
// rotate through more memory than L2 holds, outputs too. --all_configs adds keys and values alone,
// and, of decoding, every configuration that fits.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "bda/cuda.hpp"
#include "cuda_contest.cuh"

namespace {

using namespace bda_bench;
using bda::cuda::AbsorbedArguments;
using bda::cuda::AbsorbedConfig;
using bda::cuda::AbsorbedKernel;
using bda::cuda::AbsorbedProduct;
using bda::cuda::AttentionReadyArguments;
using bda::cuda::AttentionReadyConfig;
using bda::cuda::AttentionReadyKernel;
using bda::cuda::DeviceInfo;
using bda::cuda::KvElement;
using bda::cuda::KvOutput;
using bda::cuda::KvSide;
using bda::cuda::KvStore;
using bda::cuda::PackedCoefficients;

constexpr std::int64_t kDim = 512, kWidth = 128, kRope = 64;  // DeepSeek's latent attention
constexpr std::int64_t kPlainWidth = 2 * kWidth;              // k_nope and v side by side

/// How PyTorch copies between strided tensors: 512 elements a block, one at a time.
/// [tokens, heads, width], token and head strides on both sides.
template <class T>
__global__ void __launch_bounds__(128)
    copy_elements(T* to, std::int64_t to_token, std::int64_t to_head, const T* from,
                  std::int64_t from_token, std::int64_t from_head, unsigned heads_shift,
                  unsigned width_shift, std::int64_t count) {
  T values[4];
  const std::int64_t first = std::int64_t{blockIdx.x} * 512 + threadIdx.x;
  const auto split = [&](std::int64_t i, std::int64_t token_stride, std::int64_t head_stride) {
    const std::int64_t row = i >> width_shift;
    return (row >> heads_shift) * token_stride +
           (row & ((std::int64_t{1} << heads_shift) - 1)) * head_stride +
           (i & ((std::int64_t{1} << width_shift) - 1));
  };
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (first + 128 * i < count) values[i] = from[split(first + 128 * i, from_token, from_head)];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (first + 128 * i < count) to[split(first + 128 * i, to_token, to_head)] = values[i];
}

/// The best concatenation an engine could have: K = (k_nope, rope), 16 bytes a thread, eight of
/// them in flight. One CTA per token; `nope` and `rope` 16-byte pieces a head.
template <int kNope, int kRopePieces>
__global__ void __launch_bounds__(384)
    concatenate(uint4* to, const uint4* from, int from_pieces, const uint4* rope, int heads) {
  constexpr int kRow = kNope + kRopePieces, kRows = 384 / kRow;
  const std::int64_t token = blockIdx.x;
  const int row = static_cast<int>(threadIdx.x) / kRow,
            piece = static_cast<int>(threadIdx.x) % kRow;
  from += token * heads * from_pieces;
  to += token * heads * kRow;
  rope += token * kRopePieces;
  for (int first = row; first < heads; first += 8 * kRows) {
    uint4 values[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int head = first + i * kRows;
      if (head < heads)
        values[i] = piece < kNope ? __ldcs(from + head * from_pieces + piece) : rope[piece - kNope];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int head = first + i * kRows;
      if (head < heads) __stcs(to + head * kRow + piece, values[i]);
    }
  }
}

__global__ void number_slots(std::int64_t* slots, std::int64_t tokens, std::int64_t pages,
                             int page) {
  const std::int64_t t = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  // Pages in an order without pattern (7919 shares no factor with their number), tokens in order.
  if (t < tokens) slots[t] = t / page * 7919 % pages * page + t % page;
}

unsigned log2_of(std::int64_t n) {
  unsigned shift = 0;
  while ((std::int64_t{1} << shift) < n) ++shift;
  return shift;
}

/// `contest` with the medians left under the contestants' names.
std::map<std::string, double> counted_contest(benchmark::State& state,
                                              std::vector<Contestant>& contestants,
                                              const Launch& warm_up, int graph_launches) {
  std::map<std::string, double> us = contest(state, contestants, warm_up, graph_launches);
  for (const auto& [name, median] : us) state.counters[name + "_us"] = median;
  return us;
}

template <class T>
void prefill(benchmark::State& state, std::int64_t heads, std::int64_t tokens) {
  using Fp8 = __nv_fp8_e4m3;
  const std::int64_t rest = kDim - kWidth, key_row = kWidth + kRope;
  const std::int64_t columns = heads * kPlainWidth;
  const DeviceInfo device = bda::cuda::query_device<T>();
  const std::int64_t weight_size = kDim * columns;
  const int weight_sets = rotation_of(weight_size * 2);
  const std::int64_t plain_size = tokens * columns, key_size = tokens * heads * key_row;
  const std::int64_t value_size = tokens * heads * kWidth;
  const int sets = std::min(rotation_of((key_size + value_size) * 2), 24);
  const Buffer<T> weights(static_cast<std::size_t>(weight_sets * weight_size), 1, 0.05f);
  const Buffer<T> latent(static_cast<std::size_t>(tokens * kDim), 2, 1.0f);
  const Buffer<T> rope(static_cast<std::size_t>(tokens * kRope), 3, 1.0f);
  const Buffer<T> plain(static_cast<std::size_t>(sets * plain_size), 4, 1.0f);
  const Buffer<T> keys(static_cast<std::size_t>(sets * key_size), 5, 1.0f);
  const Buffer<T> values(static_cast<std::size_t>(sets * value_size), 6, 1.0f);
  const Buffer<Fp8> weights8(static_cast<std::size_t>(weight_sets * weight_size), 7, 0.05f);
  const Buffer<Fp8> latent8(static_cast<std::size_t>(tokens * kDim), 8, 1.0f);
  const auto weight = [&](int i) { return weights.data + (i % weight_sets) * weight_size; };
  const auto plain_at = [&](int i) { return plain.data + (i % sets) * plain_size; };
  const auto keys_at = [&](int i) { return keys.data + (i % sets) * key_size; };
  const auto values_at = [&](int i) { return values.data + (i % sets) * value_size; };

  const T* const rope_data = rope.data;

  constexpr int kPage = 16;
  const std::int64_t pages = (tokens + kPage - 1) / kPage;
  std::int64_t* slots = nullptr;
  CHECK_CUDA(cudaMalloc(reinterpret_cast<void**>(&slots), sizeof(std::int64_t) * tokens));
  number_slots<<<static_cast<unsigned>((tokens + 255) / 256), 256, 0, context.stream>>>(
      slots, tokens, pages, kPage);

  AttentionReadyArguments<T> args;
  args.latent = {latent.data, {tokens, kDim}};
  args.rope = {rope.data, {tokens, kRope}};
  KvSide<T> side;
  side.packing = {PackedCoefficients::kVersion, bda::cuda::Element<T>::dtype, rest, heads, kWidth};
  args.key = args.value = side;
  const auto ours = [=](std::int64_t value_basis, const char* layout, bool rows, bool dependent) {
    return [=](int i) {
      AttentionReadyArguments<T> a = args;
      a.key->coefficients = weight(i);
      a.value->coefficients = weight(i) + rest * heads * kWidth;
      a.value->basis_begin = value_basis;
      a.key->out = KvOutput::token_major(keys_at(i), heads, key_row);
      a.value->out = KvOutput::token_major(values_at(i), heads, kWidth);
      if (std::strcmp(layout, "nhd") == 0) {
        a.key->out = KvOutput::paged_nhd(keys_at(i), slots, kPage, heads, key_row);
        a.value->out = KvOutput::paged_nhd(values_at(i), slots, kPage, heads, kWidth);
      } else if (std::strcmp(layout, "hnd") == 0) {
        a.key->out = KvOutput::paged_hnd(keys_at(i), slots, kPage, heads, key_row);
        a.value->out = KvOutput::paged_hnd(values_at(i), slots, kPage, heads, kWidth);
      } else if (std::strcmp(layout, "head_major") == 0) {
        a.key->out = KvOutput::head_major(keys_at(i), tokens, key_row);
        a.value->out = KvOutput::head_major(values_at(i), tokens, kWidth);
      } else if (std::strcmp(layout, "e4m3") == 0) {
        a.key->out.element = a.value->out.element = KvElement::kE4m3;
      }
      if (std::strcmp(layout, "key_alone") == 0) a.value.reset();
      if (std::strcmp(layout, "key_without_rope") == 0) a.rope = {};
      if (std::strcmp(layout, "key_without_rope") == 0) a.value.reset();
      if (std::strcmp(layout, "value_alone") == 0) a.rope = {};
      if (std::strcmp(layout, "value_alone") == 0) a.key.reset();
      if (rows)
        a.force = AttentionReadyConfig{AttentionReadyKernel::kSm90Resident, KvStore::kRows, 128,
                                       128, "benchmark"};
      a.dependent_launch = dependent;
      const bda::Status status = run(a, device, nullptr, 0, context.stream);
      if (!status.ok()) {
        std::fprintf(stderr, "%s\n", status.message().c_str());
        std::abort();
      }
    };
  };
  std::vector<Contestant> contestants;
  contestants.push_back({"ours", ours(0, "", false, false)});
  contestants.push_back({"ours_two_bases", ours(384, "", false, false)});
  contestants.push_back({"ours_dependent", ours(0, "", false, true)});
  contestants.push_back({"ours_stored_by_rows", ours(0, "", true, false)});
  contestants.push_back({"ours_head_major", ours(0, "head_major", false, false)});
  contestants.push_back({"ours_paged_nhd", ours(0, "nhd", false, false)});
  contestants.push_back({"ours_paged_hnd", ours(0, "hnd", false, false)});
  contestants.push_back({"ours_e4m3", ours(0, "e4m3", false, false)});

  if (settings.all_configs)
    for (const char* part : {"key_alone", "key_without_rope", "value_alone"})
      contestants.push_back({part, ours(0, part, false, false)});

  using Shape = typename BlasProduct<T>::Shape;
  const std::vector<Ranked> products =
      rank_products<T>({Shape{tokens, columns, kDim, kDim, columns, columns, false},
                        Shape{tokens, columns, kDim, kDim, kDim, columns, true}},
                       weight, latent.data, nullptr, plain.data);
  if (products.empty()) return state.SkipWithError("cublasLt has no product of this shape");
  // Products write one set of outputs each time: that favours them.
  const Launch product = products[0].launch;
  contestants.push_back({"product", product});
  const unsigned heads_shift = log2_of(heads);
  const auto copy = [=](T* to, std::int64_t to_token, std::int64_t to_head, const T* from,
                        std::int64_t from_token, std::int64_t from_head, std::int64_t width) {
    const std::int64_t count = tokens * heads * width;
    copy_elements<T><<<static_cast<unsigned>((count + 511) / 512), 128, 0, context.stream>>>(
        to, to_token, to_head, from, from_token, from_head, heads_shift, log2_of(width), count);
  };
  const auto two_copies = [=](int i) {
    copy(keys_at(i), heads * key_row, key_row, plain_at(i), columns, kPlainWidth, kWidth);
    copy(keys_at(i) + kWidth, heads * key_row, key_row, rope_data, kRope, 0, kRope);
  };
  contestants.push_back({"product_two_copies", [=](int i) {
                           product(i);
                           two_copies(i);
                         }});
  contestants.push_back({"product_two_copies_value", [=](int i) {
                           product(i);
                           two_copies(i);
                           copy(values_at(i), heads * kWidth, kWidth, plain_at(i) + kWidth, columns,
                                kPlainWidth, kWidth);
                         }});
  const auto concatenation = [=](int i) {
    concatenate<16, 8><<<static_cast<unsigned>(tokens), 384, 0, context.stream>>>(
        reinterpret_cast<uint4*>(keys_at(i)), reinterpret_cast<const uint4*>(plain_at(i)),
        static_cast<int>(kPlainWidth) / 8, reinterpret_cast<const uint4*>(rope_data),
        static_cast<int>(heads));
  };
  contestants.push_back({"concatenation", concatenation});
  contestants.push_back({"product_concatenation", [=](int i) {
                           product(i);
                           concatenation(i);
                         }});

  // What an engine with fp8 weights and an fp8 cache runs: all of it in fp8, the latent's rounding
  // not counted.
  Fp8* const plain8 = reinterpret_cast<Fp8*>(plain.data);
  const auto weight8 = [&](int i) { return weights8.data + (i % weight_sets) * weight_size; };
  const std::vector<Ranked> products8 = rank_products<Fp8, Fp8>(
      {{tokens, columns, kDim, kDim, kDim, columns, true}}, weight8, latent8.data, nullptr, plain8);
  if (!products8.empty()) {
    const Launch product8 = products8[0].launch;
    contestants.push_back({"fp8_product", product8});
    contestants.push_back(
        {"fp8_product_concatenation", [=](int i) {
           product8(i);
           concatenate<8, 4><<<static_cast<unsigned>(tokens), 384, 0, context.stream>>>(
               reinterpret_cast<uint4*>(keys_at(i)),
               reinterpret_cast<const uint4*>(plain8) + (i % sets) * plain_size / 16,
               static_cast<int>(kPlainWidth) / 16, reinterpret_cast<const uint4*>(rope_data),
               static_cast<int>(heads));
         }});
  }
  // fp8 weights alone: keys and values stay in 16 bits.
  const std::vector<Ranked> products8_16 = rank_products<Fp8, __nv_bfloat16>(
      {{tokens, columns, kDim, kDim, kDim, columns, true}}, weight8, latent8.data, nullptr,
      reinterpret_cast<__nv_bfloat16*>(plain.data));
  if (!products8_16.empty()) {
    const Launch product8 = products8_16[0].launch;
    contestants.push_back({"fp8_product_to_bf16", product8});
    contestants.push_back({"fp8_product_to_bf16_concatenation", [=](int i) {
                             product8(i);
                             concatenation(i);
                           }});
  }

  std::map<std::string, double> us = counted_contest(state, contestants, product, 0);
  auto& counters = state.counters;
  counters["ratio_vs_two_copies"] = us["product_two_copies"] / us["ours"];
  counters["ratio_vs_two_copies_value"] = us["product_two_copies_value"] / us["ours"];
  counters["ratio_vs_concatenation"] = us["product_concatenation"] / us["ours"];
  counters["ratio_e4m3_vs_fp8_engine"] = us["fp8_product_concatenation"] / us["ours_e4m3"];
  counters["ratio_vs_fp8_product_to_bf16_concatenation"] =
      us["fp8_product_to_bf16_concatenation"] / us["ours"];
  counters["ratio_e4m3_vs_bf16_product"] = us["product"] / us["ours_e4m3"];
  counters["tflops"] = 2.0 * 2 * static_cast<double>(value_size * rest) / us["ours"] * 1e-6;
  counters["written_gbytes_per_second"] =
      2e-3 * static_cast<double>(key_size + value_size) / us["ours"];
  state.SetLabel(name_of(pick(args.shape(), device).kernel));
  cudaFree(slots);
}

/// One product of absorbed decoding, in graphs.
template <class T>
void decode(benchmark::State& state, AbsorbedProduct which, std::int64_t heads,
            std::int64_t tokens) {
  const bool query = which == AbsorbedProduct::kQuery;
  const DeviceInfo device = bda::cuda::query_device<T>();
  const std::int64_t depth = query ? kWidth : kDim, columns = query ? kDim : kWidth;
  const std::int64_t weight_size = heads * kDim * kWidth;  // the original's; ours is smaller
  const int sets = rotation_of(weight_size * 2);
  const Buffer<T> weights(static_cast<std::size_t>(sets * weight_size), 1, 0.05f);
  const Buffer<T> x(static_cast<std::size_t>(tokens * heads * depth), 2, 1.0f);
  const Buffer<T> out(static_cast<std::size_t>(tokens * heads * columns), 3, 1.0f);
  const auto weight = [&](int i) { return weights.data + (i % sets) * weight_size; };

  AbsorbedArguments<T> args;
  args.product = which;
  args.packing = {PackedCoefficients::kVersion, bda::cuda::Element<T>::dtype, kDim - kWidth, heads,
                  kWidth};
  args.x = {x.data, {tokens, heads, depth}};
  args.out = {out.data, {tokens, heads, columns}};
  std::vector<AbsorbedConfig> configs{pick(args.shape(), device)};
  if (settings.all_configs)
    for (int tile : {16, 32, 64})
      for (int blocks : {1, 2, 3}) {
        const AbsorbedConfig c{AbsorbedKernel::kSm90, tile, blocks, "benchmark"};
        if (validate(c, args.shape(), device).ok()) configs.push_back(c);
      }
  std::vector<Contestant> contestants;
  for (const AbsorbedConfig& config : configs)
    for (bool dependent : {false, true}) {
      const std::string name = contestants.size() < 2
                                   ? "ours"
                                   : "tile" + std::to_string(config.tile_tokens) + "x" +
                                         std::to_string(config.tile_blocks);
      contestants.push_back({name + (dependent ? "_dependent" : ""), [=](int i) {
                               AbsorbedArguments<T> a = args;
                               a.coefficients = weight(i);
                               a.force = config;
                               a.dependent_launch = dependent;
                               if (!run(a, device, nullptr, 0, context.stream).ok()) std::abort();
                             }});
    }
  using Shape = typename BlasProduct<T>::Shape;
  const auto shape = [&](bool transposed) {
    Shape s{tokens,
            columns,
            depth,
            heads * depth,
            transposed ? depth : columns,
            heads * columns,
            transposed,
            static_cast<int>(heads),
            kDim * kWidth};
    s.x_batch = depth;
    s.out_batch = columns;
    return s;
  };
  const std::vector<Ranked> ranked =
      rank_products<T>({shape(false), shape(true)}, weight, x.data, nullptr, out.data, sets);
  if (ranked.empty()) return state.SkipWithError("cublasLt has no product of this shape");
  for (std::size_t i = 0; i < std::min<std::size_t>(2, ranked.size()); ++i) {
    contestants.push_back({"batched" + std::to_string(i), ranked[i].launch});
    contestants.push_back({"batched" + std::to_string(i) + "_dependent", ranked[i].launch, true});
  }
  std::map<std::string, double> us = counted_contest(state, contestants, ranked[0].launch, sets);
  const auto least = [&](const char* suffix) {
    double best = us["batched0" + std::string(suffix)];
    if (const auto it = us.find("batched1" + std::string(suffix)); it != us.end())
      best = std::min(best, it->second);
    return best;
  };
  auto& counters = state.counters;
  counters["ratio_vs_batched"] = least("") / us["ours"];
  counters["ratio_dependent_vs_batched"] = least("") / us["ours_dependent"];
  if (const double both = least("_dependent"); both > 0)
    counters["ratio_both_dependent"] = both / us["ours_dependent"];
  const double bytes = 2.0 * static_cast<double>((kDim - kWidth) * kWidth * heads +
                                                 tokens * heads * (depth + columns));
  counters["gbytes_per_second"] = bytes / us["ours"] * 1e-3;
  state.SetLabel(std::string(name_of(configs[0].kernel)) + "_" +
                 std::to_string(configs[0].tile_tokens) + "x" +
                 std::to_string(configs[0].tile_blocks));
}

template <class T>
void add_benchmarks(const char* type) {
  for (const std::int64_t heads : {128, 16})
    for (const std::int64_t tokens : {1, 8, 16, 32, 64, 128, 256})
      for (AbsorbedProduct which : {AbsorbedProduct::kQuery, AbsorbedProduct::kOutput}) {
        const std::string name =
            std::string(which == AbsorbedProduct::kQuery ? "decode_query/" : "decode_output/") +
            type + "/n:" + std::to_string(heads) + "/M:" + std::to_string(tokens);
        benchmark::RegisterBenchmark(
            name.c_str(), [=](benchmark::State& s) { decode<T>(s, which, heads, tokens); })
            ->UseManualTime()
            ->Iterations(settings.rounds)
            ->Unit(benchmark::kMicrosecond);
      }
  for (const auto& [heads, counts] :
       {std::pair{128, std::vector<std::int64_t>{256, 1024, 4096, 16384}},
        std::pair{16, std::vector<std::int64_t>{256, 1024, 4096, 16384, 32768}}})
    for (const std::int64_t tokens : counts) {
      const std::string name = std::string("prefill/") + type + "/n:" + std::to_string(heads) +
                               "/M:" + std::to_string(tokens);
      benchmark::RegisterBenchmark(
          name.c_str(), [n = heads, tokens](benchmark::State& s) { prefill<T>(s, n, tokens); })
          ->UseManualTime()
          ->Iterations(settings.rounds)
          ->Unit(benchmark::kMicrosecond);
    }
}

}  // namespace

int main(int argc, char** argv) {
  return bda_bench::run_benchmarks(argc, argv, [] {
    add_benchmarks<__nv_bfloat16>("bf16");
    add_benchmarks<__half>("fp16");
  });
}
