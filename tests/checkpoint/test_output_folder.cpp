#include <bda/checkpoint/output_folder.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <fstream>
#include <set>
#include <span>
#include <string>

#include "checkpoint/temporary_folder.hpp"

namespace {

namespace fs = std::filesystem;
using bda::checkpoint::NewFile;
using bda::checkpoint::OutputFolder;
using bda_test::error_of;
using bda_test::TemporaryFolder;
using Catch::Matchers::ContainsSubstring;

void write(OutputFolder& output, const fs::path& name, std::string_view text) {
  NewFile file(output.part_of(name));
  file.write_at(0, std::as_bytes(std::span(text)));
  file.sync_and_close();
}

std::string content(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST_CASE("OutputFolder: files appear as they are renamed, config.json last, the marker goes") {
  const TemporaryFolder folder, input;
  const fs::path out = folder.path() / "a/b";
  {
    OutputFolder output(out, input.path());
    CHECK(fs::exists(out / OutputFolder::kMarker));
    write(output, "sub/deep/file", "content");
    write(output, "config.json", R"({"bda":{}})");
    output.rename("sub/deep/file", "sub/deep/file");
    CHECK(content(out / "sub/deep/file") == "content");
    CHECK_FALSE(fs::exists(out / "config.json"));
    output.publish_config();
  }
  CHECK(content(out / "config.json") == R"({"bda":{}})");
  CHECK_FALSE(fs::exists(out / OutputFolder::kMarker));
  CHECK(std::distance(fs::recursive_directory_iterator(out), {}) == 4);  // with two folders
}

TEST_CASE("OutputFolder takes over what a conversion left, and touches nothing else") {
  const TemporaryFolder folder, input;
  const bool finished = GENERATE(false, true);
  if (finished)
    folder.write("config.json", R"({"bda":{}})");
  else
    folder.write(OutputFolder::kMarker, "");
  folder.write("model.safetensors", "old");
  folder.write("model-00001-of-00002.safetensors", "old");
  folder.write("model.safetensors.index.json", "old");
  folder.write("shard-0.bda-part", "old");
  fs::create_directory(folder.path() / "sub");
  folder.write("sub/x.bda-part", "old");
  folder.write("model-0001-of-00002.safetensors", "mine");
  folder.write("notes.txt", "mine");
  const OutputFolder output(folder.path(), input.path());
  std::set<std::string> left;
  for (const auto& entry : fs::recursive_directory_iterator(folder.path()))
    if (entry.is_regular_file()) left.insert(entry.path().filename());
  CHECK(left == std::set<std::string>{OutputFolder::kMarker, "model-0001-of-00002.safetensors",
                                      "notes.txt"});
}

TEST_CASE("OutputFolder refuses folders that are not its own") {
  const TemporaryFolder folder, input;
  const auto open = [&](const fs::path& path) {
    return error_of([&] { OutputFolder(path, input.path()); });
  };
  folder.write("notes.txt", "mine");
  CHECK_THAT(open(folder.path()),
             ContainsSubstring(folder.path().string()) && ContainsSubstring("an empty folder"));
  folder.write("config.json", R"({"model_type":"gpt2"})");  // a checkpoint, but not converted
  CHECK_THAT(open(folder.path()), ContainsSubstring("an empty folder"));
  CHECK(content(folder.path() / "config.json") == R"({"model_type":"gpt2"})");
  CHECK_FALSE(fs::exists(folder.path() / OutputFolder::kMarker));

  CHECK_THAT(open(folder.path() / "notes.txt"), ContainsSubstring("a folder that can be made"));
  CHECK_THAT(open(input.path()), ContainsSubstring("a folder apart from the input"));
  CHECK_THAT(open(input.path() / "sub"), ContainsSubstring("a folder apart from the input"));
  CHECK_THAT(open(input.path().parent_path()), ContainsSubstring("a folder apart from the input"));
  const TemporaryFolder links;
  fs::create_directory_symlink(input.path(), links.path() / "link");
  CHECK_THAT(open(links.path() / "link"), ContainsSubstring("a folder apart from the input"));
}

TEST_CASE("OutputFolder: one conversion at a time") {
  const TemporaryFolder folder, input;
  const fs::path out = folder.path() / "out";
  {
    const OutputFolder first(out, input.path());
    CHECK_THAT(error_of([&] { OutputFolder(out, input.path()); }),
               ContainsSubstring("nobody else is writing"));
  }
  CHECK_NOTHROW(OutputFolder(out, input.path()));
}

TEST_CASE("Nothing is written through a link") {
  const TemporaryFolder folder, input, elsewhere;
  elsewhere.write("target", "mine");
  { const OutputFolder begun(folder.path(), input.path()); }
  fs::create_symlink(elsewhere.path() / "target", folder.path() / "tokenizer.json");
  fs::create_directory_symlink(elsewhere.path(), folder.path() / "sub");
  OutputFolder output(folder.path(), input.path());
  write(output, "tokenizer.json", "ours");
  output.rename("tokenizer.json", "tokenizer.json");
  CHECK(content(folder.path() / "tokenizer.json") == "ours");
  CHECK_FALSE(fs::is_symlink(folder.path() / "tokenizer.json"));
  CHECK_THAT(error_of([&] { (void)output.part_of("sub/file"); }),
             ContainsSubstring("sub") && ContainsSubstring("a folder that can be made"));
  fs::create_symlink(elsewhere.path() / "target", folder.path() / "x.bda-part");
  CHECK_THAT(error_of([&] { write(output, "x", "ours"); }),
             ContainsSubstring("x.bda-part") && ContainsSubstring("a file that can be written"));
  CHECK(content(elsewhere.path() / "target") == "mine");
  CHECK(std::distance(fs::directory_iterator(elsewhere.path()), {}) == 1);

  const TemporaryFolder marked;
  fs::create_symlink(elsewhere.path() / "target", marked.path() / OutputFolder::kMarker);
  CHECK_THAT(error_of([&] { OutputFolder(marked.path(), input.path()); }),
             ContainsSubstring(OutputFolder::kMarker));
}

}  // namespace
