#include <bda/checkpoint/safetensors.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/temporary_folder.hpp"

namespace {

using bda::checkpoint::SafetensorsFile;
using bda_test::error_of;
using bda_test::file_bytes;
using bda_test::TemporaryFolder;
using Catch::Matchers::ContainsSubstring;

struct BadFile {
  std::string what;
  std::string bytes;
  std::vector<std::string> message;  // what the error must say
};

/// A header of one F32 tensor `w` with some of its fields replaced.
std::string one_tensor(const std::string& dtype, const std::string& shape,
                       const std::string& offsets) {
  return R"({"w":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

std::string with_header_length(std::uint64_t length, std::string bytes) {
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes;
}

std::vector<BadFile> bad_files() {
  const std::string good = one_tensor(R"("F32")", "[2,3]", "[0,24]");
  const std::string two_ranges = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                 R"("b":{"dtype":"F32","shape":[2],"data_offsets":)";
  return {
      {"empty file", "", {"at least 8 bytes", "got 0 bytes"}},
      {"cut in the length", std::string(5, '\0'), {"at least 8 bytes", "got 5 bytes"}},
      {"header past the end",
       with_header_length(500, file_bytes(good, 24)),
       {"header length", "the rest of the file", "got 500"}},
      {"header past the limit",
       with_header_length(100'000'001, file_bytes(good, 24)),
       {"header length", "at most 100000000", "got 100000001"}},
      {"header length of all ones",
       with_header_length(~std::uint64_t{0}, file_bytes(good, 24)),
       {"header length", "got 18446744073709551615"}},
      {"empty header", file_bytes("", 0), {"header", "a first character {"}},
      {"space before the header", file_bytes(" " + good, 24), {"a first character {", "\" \""}},
      {"JSON cut short", file_bytes(good.substr(0, 20), 24), {"header", "well-formed JSON"}},
      {"text behind the header", file_bytes(good + "x", 24), {"header", "well-formed JSON"}},
      {"not UTF-8", file_bytes("{\"\xff\":1}", 0), {"header", "well-formed JSON"}},
      {"nesting",
       file_bytes("{\"w\":" + std::string(100'000, '['), 0),
       {"nesting of at most 64 levels"}},
      {"tensor twice",
       file_bytes(good.substr(0, good.size() - 1) + "," + good.substr(1), 24),
       {"each key once", "\"w\" twice"}},
      {"field twice",
       file_bytes(R"({"w":{"dtype":"F32","dtype":"F16","shape":[0],"data_offsets":[0,0]}})", 0),
       {"each key once", "\"dtype\" twice"}},
      {"entry is no object", file_bytes(R"({"w":[1,2]})", 0), {": w:", "dtype, shape", "[1,2]"}},
      {"no offsets",
       file_bytes(R"({"w":{"dtype":"F32","shape":[1]}})", 4),
       {": w:", "data_offsets", R"({"dtype":"F32","shape":[1]})"}},
      {"a fourth field",
       file_bytes(R"({"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0],"order":"F"}})", 0),
       {": w:", "\"order\":\"F\""}},
      {"unknown type", file_bytes(one_tensor(R"("F31")", "[6]", "[0,24]"), 24), {"w.dtype", "F31"}},
      {"type in lower case",
       file_bytes(one_tensor(R"("f32")", "[6]", "[0,24]"), 24),
       {"w.dtype", "f32"}},
      {"type is a number",
       file_bytes(one_tensor("32", "[6]", "[0,24]"), 24),
       {"w.dtype", "got 32"}},
      {"shape is a number",
       file_bytes(one_tensor(R"("F32")", "6", "[0,24]"), 24),
       {"w.shape", "got 6"}},
      {"negative extent",
       file_bytes(one_tensor(R"("F32")", "[-2,-3]", "[0,24]"), 24),
       {"w.shape", "[-2,-3]"}},
      {"fractional extent",
       file_bytes(one_tensor(R"("F32")", "[2.5]", "[0,10]"), 10),
       {"w.shape", "[2.5]"}},
      {"extent past 2^63",
       file_bytes(one_tensor(R"("F32")", "[9223372036854775808]", "[0,24]"), 24),
       {"w.shape", "9223372036854775808"}},
      // 2^32 * 2^32 elements are 0 in 64 bits: without the check, an empty range would fit.
      {"product wraps around",
       file_bytes(one_tensor(R"("F32")", "[4294967296,4294967296]", "[0,0]"), 0),
       {"w.shape", "a product below 2^63 bits", "[4294967296,4294967296]"}},
      {"half a byte",
       file_bytes(one_tensor(R"("F4")", "[3]", "[0,1]"), 1),
       {"w.shape", "F4", "[3]"}},
      {"one offset",
       file_bytes(one_tensor(R"("F32")", "[6]", "[24]"), 24),
       {"w.data_offsets", "[24]"}},
      {"negative offset",
       file_bytes(one_tensor(R"("F32")", "[6]", "[-24,0]"), 24),
       {"w.data_offsets", "[-24,0]"}},
      {"offsets swapped",
       file_bytes(one_tensor(R"("F32")", "[6]", "[24,0]"), 24),
       {"w.data_offsets", "begin <= end", "[24,0]"}},
      {"range smaller than the shape",
       file_bytes(one_tensor(R"("F32")", "[2,3]", "[0,20]"), 20),
       {"w.data_offsets", "24 bytes (shape [2,3] of F32)", "[0,20], 20 bytes"}},
      {"data cut short",
       file_bytes(good, 23),
       {"w.data_offsets", "an end of at most 23", "got 24"}},
      {"bytes in no tensor", file_bytes(good, 25), {"24 bytes behind the header", "got 25 bytes"}},
      {"overlap",
       file_bytes(two_ranges + "[4,12]}}", 12),
       {"b.data_offsets", "a begin of 8", "got 4"}},
      {"the same range twice",
       file_bytes(two_ranges + "[0,8]}}", 8),
       {"b.data_offsets", "a begin of 8", "got 0"}},
      {"hole",
       file_bytes(two_ranges + "[12,20]}}", 20),
       {"b.data_offsets", "a begin of 8", "got 12"}},
      {"hole at the front",
       file_bytes(one_tensor(R"("F32")", "[1]", "[4,8]"), 8),
       {"w.data_offsets", "a begin of 0", "got 4"}},
      {"metadata is no object", file_bytes(R"({"__metadata__":7})", 0), {"__metadata__", "got 7"}},
      {"metadata holds a number",
       file_bytes(R"({"__metadata__":{"step":7}})", 0),
       {"__metadata__.step", "a string", "got 7"}},
  };
}

TEST_CASE("SafetensorsFile refuses a damaged file and names file, tensor and value") {
  const TemporaryFolder folder;
  const BadFile bad = GENERATE(from_range(bad_files()));
  INFO(bad.what);
  const auto path = folder.write("bad.safetensors", bad.bytes);
  const std::string message = error_of([&] { SafetensorsFile{path}; });
  CHECK_THAT(message, ContainsSubstring(path.string()));
  for (const std::string& part : bad.message) CHECK_THAT(message, ContainsSubstring(part));
}

TEST_CASE("SafetensorsFile refuses what is no file") {
  const TemporaryFolder folder;
  const auto missing = folder.path() / "missing.safetensors";
  CHECK_THAT(error_of([&] { SafetensorsFile{missing}; }),
             ContainsSubstring(missing.string()) && ContainsSubstring("No such file"));
  CHECK_THAT(error_of([&] { SafetensorsFile{folder.path()}; }),
             ContainsSubstring("a regular file"));
}

TEST_CASE("SafetensorsFile reads scalars, empty tensors, metadata and odd alignment") {
  const TemporaryFolder folder;
  // An 8-bit tensor in front and an unpadded header: "w" starts at an odd address.
  std::string header = R"({"w":{"dtype":"F32","shape":[],"data_offsets":[3,7]},)"
                       R"("none":{"dtype":"BF16","shape":[5,0,2],"data_offsets":[3,3]},)"
                       R"("mask":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]},)"
                       R"("__metadata__":{"format":"pt","note":"å"}})";
  if (header.size() % 2 != 0) header += ' ';
  std::string bytes = file_bytes(header, 7);
  const float value = 1.25f;
  std::memcpy(bytes.data() + bytes.size() - 4, &value, 4);
  const SafetensorsFile file(folder.write("odd.safetensors", bytes));

  REQUIRE(file.tensors().size() == 3);
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"note", "å"}});
  CHECK(file.at("w").shape.empty());
  CHECK(file.at("w").size() == 1);
  CHECK(bda::checkpoint::read_values<double>(file.at("w")) == std::vector<double>{1.25});
  CHECK(file.at("none").shape == std::vector<std::int64_t>{5, 0, 2});
  CHECK(bda::checkpoint::read_values<float>(file.at("none")).empty());
  CHECK(file.at("mask").bytes.size() == 3);
  CHECK(file.find("v") == nullptr);
  CHECK_THAT(error_of([&] { (void)file.at("v"); }),
             ContainsSubstring("a tensor v") && ContainsSubstring("among 3"));
}

TEST_CASE("SafetensorsFile accepts a file with no tensors") {
  const TemporaryFolder folder;
  CHECK(SafetensorsFile(folder.write("none.safetensors", file_bytes("{}", 0))).tensors().empty());
}

}  // namespace
