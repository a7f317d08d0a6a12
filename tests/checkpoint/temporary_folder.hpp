#pragma once

#include <unistd.h>

#include <bda/checkpoint/load.hpp>
#include <bda/checkpoint/safetensors_writer.hpp>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>

#include "loading.hpp"

namespace bda_test {

/// A folder of its own for one test, removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "bda_test_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make " + name);
    path_ = name;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  /// Writes a file and returns its path.
  std::filesystem::path write(const std::string& name, std::string_view content) const {
    std::ofstream file(path_ / name, std::ios::binary);
    file.write(content.data(), static_cast<std::streamsize>(content.size()));
    if (!file.flush()) throw std::runtime_error("cannot write " + name);
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

/// A fixture's folder (tests/data/make_fixtures.py).
inline std::filesystem::path fixture(const std::string& name) {
  return std::filesystem::path(BDA_TEST_DATA_DIR) / name;
}

/// A safetensors file by its parts: `header` as it stands, then `data` zero bytes.
inline std::string file_bytes(std::string_view header, std::size_t data) {
  const std::uint64_t length = header.size();
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes.append(header).append(data, '\0');
}

/// All tensors of a fixture, to be changed and written again.
inline std::vector<bda::checkpoint::Tensor> tensors_of(const bda::checkpoint::TensorStore& store) {
  std::vector<bda::checkpoint::Tensor> tensors;
  for (const auto& [name, tensor] : store.tensors()) tensors.push_back(*tensor);
  return tensors;
}

/// The message of the `bda::Error` that `call` must throw; empty where it throws none.
template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const bda::Error& error) {
    return error.what();
  }
  return {};
}

}  // namespace bda_test
