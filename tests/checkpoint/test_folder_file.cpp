#include <sys/stat.h>

#include <bda/checkpoint/folder_file.hpp>
#include <bda/checkpoint/tensor_store.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "checkpoint/temporary_folder.hpp"

namespace {

namespace fs = std::filesystem;
using bda::checkpoint::file_in_folder;
using bda::checkpoint::TensorStore;
using bda_test::error_of;
using bda_test::file_bytes;
using bda_test::TemporaryFolder;
using Catch::Matchers::ContainsSubstring;

const std::string kTensor =
    file_bytes(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4);

TEST_CASE("file_in_folder follows links within the folder and refuses those that lead out") {
  const TemporaryFolder folder, elsewhere;
  elsewhere.write("secret", "x");
  folder.write("file", "x");
  fs::create_symlink("file", folder.path() / "inside");
  fs::create_symlink(elsewhere.path() / "secret", folder.path() / "outside");
  fs::create_symlink("../" + elsewhere.path().filename().string() + "/secret",
                     folder.path() / "upwards");
  fs::create_directory_symlink(elsewhere.path(), folder.path() / "sub");
  CHECK(file_in_folder(folder.path(), "file") == folder.path() / "file");
  CHECK(file_in_folder(folder.path(), "inside") == folder.path() / "inside");
  CHECK(file_in_folder(folder.path(), "missing") == folder.path() / "missing");
  for (const char* name : {"outside", "upwards", "sub/secret"}) {
    INFO(name);
    CHECK_THAT(error_of([&] { (void)file_in_folder(folder.path(), name); }),
               ContainsSubstring((folder.path() / name).string()) &&
                   ContainsSubstring("a file within the folder") &&
                   ContainsSubstring("a link to " + fs::canonical(elsewhere.path()).string()));
  }
}

TEST_CASE("A folder with the other's name in front is another folder") {
  const TemporaryFolder parent;
  fs::create_directory(parent.path() / "model");
  fs::create_directory(parent.path() / "model2");
  parent.write("model2/file", "x");
  fs::create_symlink(parent.path() / "model2/file", parent.path() / "model/link");
  CHECK_THAT(error_of([&] { (void)file_in_folder(parent.path() / "model", "link"); }),
             ContainsSubstring("a link to"));
}

TEST_CASE("The blobs of a Hugging Face cache belong to its snapshots") {
  const TemporaryFolder cache;
  fs::create_directories(cache.path() / "snapshots/abc");
  fs::create_directories(cache.path() / "blobs");
  cache.write("blobs/1", kTensor);
  const fs::path snapshot = cache.path() / "snapshots/abc";
  fs::create_symlink("../../blobs/1", snapshot / TensorStore::kSingleFile);
  CHECK(TensorStore(snapshot).at("a").size() == 1);
  cache.write("else", "x");
  fs::create_symlink("../../else", snapshot / "link");
  CHECK_THAT(error_of([&] { (void)file_in_folder(snapshot, "link"); }),
             ContainsSubstring("a link to"));
}

TEST_CASE("A store's files may not be links out of its folder, pipes or links in circles") {
  const TemporaryFolder folder, elsewhere;
  const fs::path file = folder.path() / TensorStore::kSingleFile;
  elsewhere.write("tensors", kTensor);
  fs::create_symlink(elsewhere.path() / "tensors", file);
  CHECK_THAT(error_of([&] { TensorStore{folder.path()}; }),
             ContainsSubstring(file.string()) && ContainsSubstring("a link to"));

  fs::remove(file);
  REQUIRE(mkfifo(file.c_str(), 0600) == 0);
  CHECK_THAT(error_of([&] { TensorStore{folder.path()}; }),
             ContainsSubstring(file.string()) && ContainsSubstring("a regular file"));

  fs::remove(file);
  fs::create_symlink(TensorStore::kSingleFile, file);
  CHECK_THAT(error_of([&] { TensorStore{folder.path()}; }), ContainsSubstring("with neither"));

  fs::remove(file);
  folder.write(TensorStore::kIndexFile, R"({"weight_map":{"a":"shard"}})");
  fs::create_symlink(elsewhere.path() / "tensors", folder.path() / "shard");
  CHECK_THAT(error_of([&] { TensorStore{folder.path()}; }),
             ContainsSubstring("shard") && ContainsSubstring("a link to"));
}

}  // namespace
