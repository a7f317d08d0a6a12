#include <bda/checkpoint/shard_writer.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "checkpoint/temporary_folder.hpp"

namespace {

using namespace bda::checkpoint;  // NOLINT(google-build-using-namespace)
using bda_test::error_of;
using bda_test::TemporaryFolder;
using Catch::Matchers::ContainsSubstring;

template <class Raw>
Tensor tensor_of(const std::string& name, const std::vector<Raw>& values, const char* type) {
  return {name,
          *find_element_type(type),
          {static_cast<std::int64_t>(values.size())},
          std::as_bytes(std::span(values)),
          {}};
}

TEST_CASE("ShardWriter: bounded shards with an index, aligned, and read back bit for bit") {
  const TemporaryFolder folder, input;
  const std::filesystem::path out = folder.path() / "out";
  std::vector<std::vector<std::uint32_t>> wide(5, std::vector<std::uint32_t>(7));
  std::vector<std::uint16_t> narrow(33), large(200);
  std::uint32_t next = 1;
  for (auto& values : wide)
    for (auto& value : values) value = next++ * 2654435761u;
  std::iota(narrow.begin(), narrow.end(), std::uint16_t{7});
  std::iota(large.begin(), large.end(), std::uint16_t{9});

  OutputFolder output(out, input.path());
  ShardWriter writer(output, 100);  // three of 28 bytes; the one of 400 stands alone
  std::vector<Tensor> tensors;
  for (std::size_t i = 0; i < wide.size(); ++i)
    tensors.push_back(tensor_of("wide " + std::to_string(i), wide[i], "U32"));
  tensors.push_back(tensor_of("narrow", narrow, "BF16"));
  tensors.push_back(tensor_of("large", large, "U16"));
  tensors.push_back(tensor_of("wide \"again\"", wide[0], "F32"));
  tensors.push_back(tensor_of("none", std::vector<float>(), "F32"));
  for (const Tensor& tensor : tensors) writer.add(tensor);
  CHECK_FALSE(std::filesystem::exists(out / TensorStore::kIndexFile));
  CHECK(writer.publish() == 5);  // 3, 2, narrow, large, and again as elements become wider

  const TensorStore store(out);
  REQUIRE(store.files().size() == 5);
  REQUIRE(store.tensors().size() == tensors.size());
  for (const Tensor& tensor : tensors) {
    INFO(tensor.name);
    const Tensor& read = store.at(tensor.name);
    CHECK(read.type == tensor.type);
    CHECK(read.shape == tensor.shape);
    CHECK(std::ranges::equal(read.bytes, tensor.bytes));
    CHECK(reinterpret_cast<std::uintptr_t>(read.bytes.data()) %
              static_cast<std::uintptr_t>(read.type.bits / 8) ==
          0);
  }
  for (const SafetensorsFile& file : store.files()) {
    CHECK(file.metadata().at("format") == "pt");  // transformers asks for it
    std::size_t bytes = 0;
    for (const auto& [name, tensor] : file.tensors()) bytes += tensor.bytes.size();
    CHECK((bytes <= 100 || file.tensors().size() == 1));
  }
  CHECK_THAT(store.files().front().path().string(),
             ContainsSubstring("model-00001-of-00005.safetensors"));
}

TEST_CASE("ShardWriter: one shard needs no index; a full header begins another") {
  const TemporaryFolder folder, input;
  const std::vector<float> values(1);
  {
    OutputFolder output(folder.path() / "one", input.path());
    ShardWriter writer(output, 1 << 20);
    writer.add(tensor_of("a", values, "F32"));
    CHECK(writer.publish() == 1);
    CHECK(TensorStore(folder.path() / "one").files().size() == 1);
    CHECK_FALSE(std::filesystem::exists(folder.path() / "one" / TensorStore::kIndexFile));
  }
  OutputFolder output(folder.path() / "two", input.path());
  ShardWriter writer(output, 1 << 20);
  for (const char* letter : {"a", "b", "c"}) {
    std::string name(ShardWriter::kHeaderRoom / 2 - 200, letter[0]);
    writer.add(tensor_of(name, values, "F32"));
  }
  CHECK(writer.publish() == 2);
  CHECK(TensorStore(folder.path() / "two").tensors().size() == 3);
}

TEST_CASE("ShardWriter refuses what no header can hold") {
  const TemporaryFolder folder, input;
  const std::vector<float> values(1);
  OutputFolder output(folder.path() / "out", input.path());
  ShardWriter writer(output, 1 << 20);
  const std::string name(ShardWriter::kHeaderRoom, 'x');
  CHECK_THAT(error_of([&] { writer.add(tensor_of(name, values, "F32")); }),
             ContainsSubstring("name of a tensor") && ContainsSubstring("got 65536"));
  Tensor wrong = tensor_of("w", values, "F32");
  wrong.shape = {2};
  CHECK_THAT(error_of([&] { writer.add(wrong); }), ContainsSubstring("w.bytes"));
}

}  // namespace
