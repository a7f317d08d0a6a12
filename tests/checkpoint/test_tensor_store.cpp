#include <bda/checkpoint/tensor_store.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <string>
#include <vector>

#include "checkpoint/temporary_folder.hpp"

namespace {

using bda::checkpoint::TensorStore;
using bda_test::error_of;
using bda_test::file_bytes;
using bda_test::TemporaryFolder;
using Catch::Matchers::ContainsSubstring;

std::string tensor_file(const std::string& name) {
  return file_bytes(R"({")" + name + R"(":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4);
}

/// Two shards with a tensor each, and an index with the given weight_map.
void write_shards(const TemporaryFolder& folder, const std::string& weight_map) {
  folder.write("one.safetensors", tensor_file("a"));
  folder.write("two.safetensors", tensor_file("b"));
  folder.write(TensorStore::kIndexFile, R"({"metadata":{},"weight_map":)" + weight_map + "}");
}

TEST_CASE("TensorStore opens one file or the shards of an index") {
  const TemporaryFolder folder;
  write_shards(folder, R"({"a":"one.safetensors","b":"two.safetensors"})");
  const TensorStore shards(folder.path());
  CHECK(shards.files().size() == 2);
  CHECK(shards.tensors().size() == 2);
  CHECK_THAT(shards.at("b").file, ContainsSubstring("two.safetensors"));
  CHECK(shards.find("c") == nullptr);
  CHECK_THAT(error_of([&] { (void)shards.at("c"); }), ContainsSubstring("a tensor c"));

  const TemporaryFolder single;
  single.write(TensorStore::kSingleFile, tensor_file("a"));
  CHECK(TensorStore(single.path()).at("a").size() == 1);
}

TEST_CASE("TensorStore stays valid when it is moved") {
  const TemporaryFolder folder;
  write_shards(folder, R"({"a":"one.safetensors","b":"two.safetensors"})");
  TensorStore first(folder.path());
  const auto* bytes = first.at("a").bytes.data();
  const TensorStore second(std::move(first));
  CHECK(second.at("a").bytes.data() == bytes);
  CHECK(second.at("a").bytes[0] == std::byte{0});
}

TEST_CASE("TensorStore refuses a folder without a checkpoint") {
  const TemporaryFolder folder;
  CHECK_THAT(error_of([&] { TensorStore{folder.path()}; }),
             ContainsSubstring(folder.path().string()) && ContainsSubstring("with neither"));
  CHECK_THAT(error_of([&] { TensorStore{folder.path() / "none"}; }),
             ContainsSubstring("got no folder"));
}

struct BadIndex {
  std::string weight_map;
  std::vector<std::string> message;
};

TEST_CASE("TensorStore refuses an index that does not fit its shards") {
  const BadIndex bad = GENERATE(values<BadIndex>({
      {R"([])", {"weight_map", "got []"}},
      {R"({"a":"one.safetensors","b":"three.safetensors"})",
       {": b:", "a file three.safetensors in the folder"}},
      {R"({"a":"one.safetensors","b":"one.safetensors"})",
       {": b:", "a tensor in one.safetensors", "none of that name"}},
      {R"({"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"})",
       {": c:", "a tensor in two.safetensors"}},
      {R"({"b":"two.safetensors","c":"one.safetensors"})", {": c:", "a tensor in one.safetensors"}},
      {R"({"a":"../one.safetensors"})",
       {": a:", "the name of a file in the folder", "../one.safetensors"}},
      {R"({"a":"/etc/passwd"})", {": a:", "the name of a file in the folder", "/etc/passwd"}},
      {R"({"a":".."})", {": a:", "\"..\""}},
      {R"({"a":"one.safetensors\u0000"})", {": a:", "the name of a file in the folder"}},
      {R"({"a":7})", {": a:", "the name of a file in the folder", "got 7"}},
      {R"({"a":"one.safetensors","a":"two.safetensors"})", {"each key once", "\"a\" twice"}},
  }));
  INFO(bad.weight_map);
  const TemporaryFolder folder;
  write_shards(folder, bad.weight_map);
  const std::string message = error_of([&] { TensorStore{folder.path()}; });
  CHECK_THAT(message, ContainsSubstring(TensorStore::kIndexFile));
  for (const std::string& part : bad.message) CHECK_THAT(message, ContainsSubstring(part));
}

TEST_CASE("TensorStore refuses a tensor that the index leaves out or puts elsewhere") {
  const TemporaryFolder folder;
  write_shards(folder, R"({"a":"one.safetensors"})");
  folder.write("one.safetensors",
               file_bytes(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                          R"("b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
                          0));
  CHECK_THAT(error_of([&] { TensorStore{folder.path()}; }),
             ContainsSubstring("one.safetensors: b") && ContainsSubstring("no entry in the index"));
  folder.write(TensorStore::kIndexFile,
               R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  CHECK_THAT(error_of([&] { TensorStore{folder.path()}; }),
             ContainsSubstring("one.safetensors: b") && ContainsSubstring("two.safetensors"));
}

}  // namespace
