#include <bda/checkpoint/safetensors_writer.hpp>
#include <bda/linalg/scalar.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/temporary_folder.hpp"

namespace {

using namespace bda::checkpoint;  // NOLINT(google-build-using-namespace)
using bda_test::error_of;
using bda_test::TemporaryFolder;
using Catch::Matchers::ContainsSubstring;

TEST_CASE("What write_safetensors writes reads back bit for bit") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "out.safetensors";
  const std::vector<double> wide{1.0 / 3, -0.0, std::numeric_limits<double>::quiet_NaN()};
  const std::vector<Eigen::half> narrow{Eigen::half(0.1f), Eigen::half(-2.0f)};
  std::vector<Tensor> tensors{make_tensor<Eigen::half>("narrow", {2, 1}, narrow),
                              make_tensor<double>("wide", {3}, wide)};
  write_safetensors(path, tensors, {{"made_by", "test \"quoted\""}});

  const SafetensorsFile file(path);
  CHECK(file.metadata().at("made_by") == "test \"quoted\"");
  REQUIRE(file.tensors().size() == 2);
  for (const Tensor& tensor : tensors) {
    const Tensor& read = file.at(tensor.name);
    CHECK(read.type == tensor.type);
    CHECK(read.shape == tensor.shape);
    CHECK(std::ranges::equal(read.bytes, tensor.bytes));
    CHECK(reinterpret_cast<std::uintptr_t>(read.bytes.data()) %
              static_cast<std::uintptr_t>(read.type.bits / 8) ==
          0);
  }
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("write_safetensors refuses what would be no valid file") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "out.safetensors";
  const std::vector<float> values(6);
  const auto write = [&](std::vector<Tensor> tensors) {
    return error_of([&] { write_safetensors(path, std::move(tensors)); });
  };
  CHECK_THAT(write({make_tensor<float>("w", {2, 4}, values)}),
             ContainsSubstring("w.bytes: expected 256") && ContainsSubstring("got 192"));
  CHECK_THAT(write({make_tensor<float>("w", {6}, values), make_tensor<float>("w", {6}, values)}),
             ContainsSubstring("a tensor name of its own") && ContainsSubstring("\"w\""));
  CHECK_THAT(write({make_tensor<float>("__metadata__", {6}, values)}),
             ContainsSubstring("a tensor name of its own"));
  CHECK_THAT(write({make_tensor<float>("\xff", {6}, values)}), ContainsSubstring("in UTF-8"));
  CHECK(std::filesystem::is_empty(folder.path()));
  CHECK_THAT(error_of([&] { write_safetensors(folder.path() / "no" / "w", {}); }),
             ContainsSubstring("a file that can be written"));
}

}  // namespace
