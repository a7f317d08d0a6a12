#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "bda/checkpoint/convert.hpp"
#include "bda/checkpoint/safetensors.hpp"
#include "bda/core/checks.hpp"

namespace bda::inline v0::checkpoint {

/// A tensor to write: `values` as they are in memory, row-major in `shape`. It refers to them.
template <Storage T>
[[nodiscard]] Tensor make_tensor(std::string name, std::vector<std::int64_t> shape,
                                 std::span<const T> values) {
  return {std::move(name),
          *find_element_type(element_name(StorageTraits<T>::dtype)),
          std::move(shape),
          std::as_bytes(values),
          {}};
}

/// Writes a safetensors file, replacing `path` only once all of it is written.
///
/// Wider elements come first, so that every tensor is aligned to its element size. Throws `Error`
/// where a tensor's bytes do not fit its shape, a name stands twice or is `__metadata__`, or the
/// file cannot be written.
inline void write_safetensors(const std::filesystem::path& path, std::vector<Tensor> tensors,
                              const std::map<std::string, std::string>& metadata = {}) {
  std::stable_sort(tensors.begin(), tensors.end(),
                   [](const Tensor& a, const Tensor& b) { return a.type.bits > b.type.bits; });
  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const Tensor& tensor : tensors) {
    const std::string label = path.string() + ": " + tensor.name;
    if (tensor.name == "__metadata__" || header.contains(tensor.name))
      throw Error(label, "a tensor name of its own", quote(Json(tensor.name)));
    check::equal(label + ".bytes", static_cast<std::int64_t>(tensor.bytes.size()) * 8,
                 tensor.size() * tensor.type.bits, "the shape's, in bits");
    header[tensor.name] = {{"dtype", tensor.type.name},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + tensor.bytes.size()}}};
    offset += tensor.bytes.size();
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const Json::exception& error) {
    throw Error(path.string() + ": header", "names and metadata in UTF-8", error.what());
  }
  text.append((8 - text.size() % 8) % 8, ' ');  // the format lets the header be padded
  const std::uint64_t length = text.size();

  std::filesystem::path part = path;
  part += ".part";
  {
    std::ofstream file(part, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&length), sizeof(length));
    file.write(text.data(), static_cast<std::streamsize>(text.size()));
    for (const Tensor& tensor : tensors)
      file.write(reinterpret_cast<const char*>(tensor.bytes.data()),
                 static_cast<std::streamsize>(tensor.bytes.size()));
    file.close();
    if (!file)
      throw Error(part.string(), "a file that can be written",
                  std::generic_category().message(errno));
  }
  std::error_code failure;
  std::filesystem::rename(part, path, failure);
  if (failure) throw Error(path.string(), "a file that can be written", failure.message());
}

}  // namespace bda::inline v0::checkpoint
