#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "bda/cuda/ptx/wgmma.cuh"
#include "machine.hpp"

// That the emulated multiprocessor notices what it is there to notice.
namespace {

namespace ptx = bda::cuda::ptx;
using bda_emulated::Timing;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

constexpr std::uint32_t kFull = 2048, kEmpty = 2056;  // barriers behind two buffers of 1 KiB
constexpr std::uint32_t kBytes = 1024;

void run(Timing timing, const std::function<void()>& kernel, unsigned threads = 128,
         unsigned ctas = 1) {
  bda_emulated::set_timing(timing, 7);
  bda_emulated::launch({ctas, 1, 1}, ctas, threads, bda_emulated::kSharedBytes, kernel);
}

std::uint32_t word_at(std::uint32_t address) {
  std::uint32_t word;
  std::memcpy(&word, bda_emulated::shared(address, 4), 4);
  return word;
}

/// Thread 0 copies to shared memory, everybody reads it; after waiting for it, if `waits`. Whether
/// all have read what was copied.
bool reads_the_copy(Timing timing, bool waits) {
  alignas(16) std::uint8_t source[kBytes] = {1};
  int wrong = 0;
  run(timing, [&] {
    if (threadIdx.x == 0) {
      ptx::mbarrier_init(kFull, 1);
      ptx::fence_mbarrier_init();
      ptx::mbarrier_arrive_expect_bytes(kFull, kBytes);
      ptx::bulk_load(0, source, kBytes, kFull);
    }
    __syncthreads();
    if (waits) ptx::mbarrier_wait(kFull, 0);
    if (word_at(0) != 1) ++wrong;
    ptx::mbarrier_wait(kFull, 0);
  });
  return wrong == 0;
}

TEST_CASE("emulated: a copy is there once its barrier says so, and may come later than it is read",
          "[cuda_emulated][machine]") {
  for (const Timing timing : {Timing::kEarlyCopies, Timing::kLateCopies, Timing::kRandom})
    CHECK(reads_the_copy(timing, true));
  CHECK(reads_the_copy(Timing::kEarlyCopies, false));
  CHECK_FALSE(reads_the_copy(Timing::kLateCopies, false));
}

TEST_CASE("emulated: what is waited for in vain is an error", "[cuda_emulated][machine]") {
  CHECK_THROWS_MATCHES(run(Timing::kRandom,
                           [] {
                             if (threadIdx.x == 0) ptx::mbarrier_init(kFull, 2);
                             __syncthreads();
                             if (threadIdx.x == 0) ptx::mbarrier_arrive(kFull);
                             ptx::mbarrier_wait(kFull, 0);
                           }),
                       std::runtime_error,
                       MessageMatches(ContainsSubstring("in vain: 128 for the mbarrier at 2048;")));
  CHECK_THROWS_MATCHES(run(Timing::kRandom, [] { ptx::mbarrier_wait(kEmpty, 0); }),
                       std::runtime_error,
                       MessageMatches(ContainsSubstring("not initialised, at 2056")));
  CHECK_THROWS_MATCHES(run(Timing::kRandom,
                           [] {
                             if (threadIdx.x == 0) ptx::mbarrier_init(kFull, 1);
                             __syncthreads();
                             if (threadIdx.x == 64) ptx::mbarrier_arrive(kFull + 8);
                           }),
                       std::runtime_error,
                       MessageMatches(ContainsSubstring("not initialised, at 2056")));
}

TEST_CASE("emulated: misuse is an error, in a thread and in what runs beside it",
          "[cuda_emulated][machine]") {
  alignas(16) std::uint8_t source[kBytes] = {};
  for (const Timing timing : {Timing::kEarlyCopies, Timing::kLateCopies, Timing::kRandom}) {
    CHECK_THROWS_MATCHES(run(timing,
                             [&] {
                               if (threadIdx.x == 0) {
                                 ptx::mbarrier_init(kEmpty, 1);
                                 ptx::bulk_load(0, source, kBytes, kFull);
                               }
                               __syncthreads();
                               ptx::mbarrier_wait(kEmpty, 0);
                             }),
                         std::runtime_error,
                         MessageMatches(ContainsSubstring("not initialised, at 2048")));
    CHECK_THROWS_MATCHES(run(timing, [] { ptx::store_word(bda_emulated::kSharedBytes, 1); }),
                         std::runtime_error,
                         MessageMatches(ContainsSubstring("beyond shared memory")));
    CHECK_THROWS_MATCHES(run(timing,
                             [] {
                               if (threadIdx.x == 0) ptx::mbarrier_init(kFull, 1);
                               __syncthreads();
                               if (threadIdx.x < 2) ptx::mbarrier_arrive_expect_bytes(kFull, 16);
                             }),
                         std::runtime_error,
                         MessageMatches(ContainsSubstring("one arrival too many")));
  }
}

TEST_CASE("emulated: a CTA must await its copies and products", "[cuda_emulated][machine]") {
  alignas(16) std::uint8_t source[kBytes] = {};
  CHECK_THROWS_MATCHES(run(Timing::kLateCopies,
                           [&] {
                             if (threadIdx.x != 0) return;
                             ptx::mbarrier_init(kFull, 1);
                             ptx::fence_mbarrier_init();
                             ptx::mbarrier_arrive_expect_bytes(kFull, kBytes);
                             ptx::bulk_load(0, source, kBytes, kFull);
                           }),
                       std::runtime_error, MessageMatches(ContainsSubstring("before its copies")));
  CHECK_THROWS_MATCHES(run(Timing::kEarlyCopies,
                           [] {
                             float d[4] = {};
                             ptx::wgmma_fence();
                             const std::uint64_t zeros = ptx::matrix_descriptor(0);
                             ptx::wgmma<__half, 8>(d, zeros, zeros, 0);
                             ptx::wgmma_commit();
                           }),
                       std::runtime_error,
                       MessageMatches(ContainsSubstring("before its products")));
}

/// One product of ones with ones, 64 x 16 by 16 x 8; the buffers are overwritten once it is asked
/// for, after waiting for it, if `waits`. Whether everybody gets 16.
bool multiplies_ones(Timing timing, bool waits, bool fence) {
  constexpr std::uint32_t kRight = 8192, kOnes = 0x3c003c00;
  int wrong = 0;
  run(timing, [&] {
    for (std::uint32_t at = threadIdx.x * 4; at < kRight + kBytes; at += 4 * 128)
      ptx::store_word(at, kOnes);
    if (fence) ptx::fence_proxy_async();
    __syncthreads();
    float d[4] = {};
    ptx::wgmma_fence();
    ptx::wgmma<__half, 8>(d, ptx::matrix_descriptor(0), ptx::matrix_descriptor(kRight), 1);
    ptx::wgmma_commit();
    if (waits) ptx::wgmma_wait<0>();
    __syncthreads();
    for (std::uint32_t at = threadIdx.x * 4; at < kRight + kBytes; at += 4 * 128)
      ptx::store_word(at, 0);
    ptx::fence_proxy_async();
    __syncthreads();
    ptx::wgmma_wait<0>();
    for (const float v : d)
      if (v != 16.0f) ++wrong;
  });
  return wrong == 0;
}

TEST_CASE("emulated: a product may read its operands until it is waited for",
          "[cuda_emulated][machine]") {
  for (const Timing timing : {Timing::kEarlyCopies, Timing::kLateCopies, Timing::kRandom})
    CHECK(multiplies_ones(timing, true, true));
  CHECK_FALSE(multiplies_ones(Timing::kEarlyCopies, false, true));
  CHECK_THROWS_MATCHES(multiplies_ones(Timing::kEarlyCopies, true, false), std::runtime_error,
                       MessageMatches(ContainsSubstring("no proxy fence")));
}

TEST_CASE("emulated: matrices go where the lanes say, and come back", "[cuda_emulated][machine]") {
  std::vector<std::uint32_t> plain(32 * 4), transposed(32 * 4);
  run(
      Timing::kRandom,
      [&] {
        const std::uint32_t lane = threadIdx.x;
        ptx::store_matrices(lane * 16, 4 * lane, 4 * lane + 1, 4 * lane + 2, 4 * lane + 3);
        std::uint32_t r[4];
        ptx::load_matrices(r, lane * 16);
        std::copy(r, r + 4, &plain[lane * 4]);
        ptx::load_matrices_transposed(r, lane * 16);
        ptx::store_matrices_transposed(kBytes + lane * 16, r[0], r[1], r[2], r[3]);
        ptx::load_matrices(r, kBytes + lane * 16);
        std::copy(r, r + 4, &transposed[lane * 4]);
        ptx::fence_proxy_async();
      },
      32);
  for (std::uint32_t i = 0; i < plain.size(); ++i) {
    CHECK(plain[i] == i);
    CHECK(transposed[i] == i);
  }
}

TEST_CASE("emulated: CTAs of a cluster write to each other", "[cuda_emulated][machine]") {
  for (const Timing timing : {Timing::kEarlyCopies, Timing::kLateCopies, Timing::kRandom}) {
    std::vector<float> got(3);
    run(
        timing,
        [&] {
          if (threadIdx.x == 0) {
            ptx::mbarrier_init(kFull, 1);
            ptx::fence_mbarrier_init();
            ptx::mbarrier_arrive_expect_bytes(kFull, 16);
          }
          ptx::cluster_arrive();
          ptx::cluster_wait();
          if (threadIdx.x != 0) return;
          const std::uint32_t other = (blockIdx.x + 1) % 3;
          ptx::store_async(ptx::address_in_cluster(0, other), static_cast<float>(blockIdx.x), 0, 0,
                           0, ptx::address_in_cluster(kFull, other));
          ptx::mbarrier_wait(kFull, 0);
          got[blockIdx.x] = ptx::load_floats(0).x;
        },
        32, 3);
    CHECK(got == std::vector<float>{2, 0, 1});
  }
}

}  // namespace
