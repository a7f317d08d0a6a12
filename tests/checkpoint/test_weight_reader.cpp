#include <bda/checkpoint/safetensors_writer.hpp>
#include <bda/checkpoint/weight_reader.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <numeric>
#include <utility>
#include <vector>

#include "checkpoint/temporary_folder.hpp"

namespace {

TEST_CASE("WeightReader transposes any shape") {
  const auto [out, in] = GENERATE(table<std::int64_t, std::int64_t>(
      {{1, 1}, {1, 200}, {200, 1}, {63, 65}, {64, 64}, {131, 67}, {5, 129}}));
  std::vector<float> values(static_cast<std::size_t>(out * in));
  std::iota(values.begin(), values.end(), 0.0f);
  const bda_test::TemporaryFolder folder;
  bda::checkpoint::write_safetensors(folder.path() / bda::checkpoint::TensorStore::kSingleFile,
                                     {bda::checkpoint::make_tensor<float>("w", {out, in}, values)});
  const bda::checkpoint::TensorStore store(folder.path());
  bda::checkpoint::WeightReader<double> weights(store, {}, "w");
  const bda::Matrix<double> w = weights.transposed("w", in, out);
  REQUIRE(w.rows == in);
  REQUIRE(w.cols == out);
  int wrong = 0;
  for (std::int64_t i = 0; i < in; ++i)
    for (std::int64_t j = 0; j < out; ++j) wrong += w(i, j) != static_cast<double>(j * in + i);
  CHECK(wrong == 0);
}

}  // namespace
