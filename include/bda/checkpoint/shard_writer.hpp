#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bda/checkpoint/output_folder.hpp"
#include "bda/checkpoint/safetensors_header.hpp"
#include "bda/core/checks.hpp"

namespace bda::inline v0::checkpoint {

/// Writes tensors one after the other into safetensors shards of bounded size, without holding
/// any: the room for a shard's header is set aside in front, and what it does not fill is padded
/// with spaces, as the format allows.
///
/// Within a shard elements never become wider, so that every tensor is aligned to its own.
class ShardWriter {
 public:
  /// Of a shard's front; a new shard begins where it is full.
  static constexpr std::uint64_t kHeaderRoom = 65536;

  /// Shards hold at most `limit` bytes of values, but for a single tensor that is larger.
  ShardWriter(OutputFolder& folder, std::uint64_t limit) : folder_(folder), limit_(limit) {}

  void add(const Tensor& tensor) { write(tensor, false); }
  /// The same of a mapped tensor, whose pages are given back as they are written.
  void add_mapped(const Tensor& tensor) { write(tensor, true); }

  [[nodiscard]] std::uint64_t bytes() const { return total_; }

  /// Closes the last shard, gives all their names, and writes the index where there is more than
  /// one. Returns how many there are.
  std::int64_t publish() {
    close_shard();
    const std::size_t count = shards_.size();
    Json weight_map = Json::object();
    for (std::size_t i = 0; i < count; ++i) {
      const std::string name = count == 1 ? TensorStore::kSingleFile : shard_name(i + 1, count);
      folder_.rename(part_name(i), name);
      for (const std::string& tensor : shards_[i]) weight_map[tensor] = name;
    }
    if (count > 1) {
      const std::string text =
          Json({{"metadata", {{"total_size", total_}}}, {"weight_map", std::move(weight_map)}})
              .dump(1) +
          "\n";
      NewFile file(folder_.part_of(TensorStore::kIndexFile));
      file.write_at(0, std::as_bytes(std::span(text)));
      file.sync_and_close();
      folder_.rename(TensorStore::kIndexFile, TensorStore::kIndexFile);
    }
    return static_cast<std::int64_t>(count);
  }

 private:
  static constexpr std::uint64_t kPrefix = sizeof(std::uint64_t);

  static std::string part_name(std::size_t i) { return "shard-" + std::to_string(i); }
  static std::string shard_name(std::size_t i, std::size_t count) {
    std::array<char, 64> name{};
    std::snprintf(name.data(), name.size(), "model-%05zu-of-%05zu.safetensors", i, count);
    return name.data();
  }

  void write(const Tensor& tensor, bool mapped) {
    check::equal(tensor.name + ".bytes", static_cast<std::int64_t>(tensor.bytes.size()) * 8,
                 tensor.size() * tensor.type.bits, "the shape's, in bits");
    const std::uint64_t size = tensor.bytes.size();
    if (file_ &&
        (filled_ + size > limit_ || tensor.type.bits > last_bits_ || !fits(entry(tensor, filled_))))
      close_shard();
    if (!file_) open_shard();
    const std::string text = entry(tensor, filled_);
    if (!fits(text))
      throw Error(folder_.path().string() + ": name of a tensor",
                  "at most " + std::to_string(kHeaderRoom / 2) + " bytes",
                  std::to_string(tensor.name.size()));
    header_ += text;
    shards_.back().push_back(tensor.name);
    constexpr std::size_t kChunk = std::size_t{8} << 20;  // what is in memory of a mapped tensor
    for (std::size_t done = 0; done < size; done += kChunk) {
      const auto chunk = tensor.bytes.subspan(done, std::min(kChunk, size - done));
      file_->write_at(kHeaderRoom + filled_ + done, chunk);
      if (mapped) MappedFile::release(chunk);
    }
    filled_ += size;
    total_ += size;
    last_bits_ = tensor.type.bits;
  }

  /// The tensor's part of the header, with the comma in front of it.
  static std::string entry(const Tensor& tensor, std::uint64_t offset) {
    const Json value = {{"dtype", tensor.type.name},
                        {"shape", tensor.shape},
                        {"data_offsets", {offset, offset + tensor.bytes.size()}}};
    return "," + Json(tensor.name).dump() + ":" + value.dump();
  }
  [[nodiscard]] bool fits(const std::string& text) const {
    return kPrefix + header_.size() + text.size() + 1 <= kHeaderRoom;
  }

  void open_shard() {
    file_ = std::make_unique<NewFile>(folder_.part_of(part_name(shards_.size())));
    shards_.emplace_back();
    header_ = R"({"__metadata__":{"format":"pt"})";
    filled_ = 0;
  }

  void close_shard() {
    if (!file_) return;
    header_ += '}';
    header_.resize(kHeaderRoom - kPrefix, ' ');
    const std::uint64_t length = header_.size();
    file_->write_at(0, std::as_bytes(std::span(&length, 1)));
    file_->write_at(kPrefix, std::as_bytes(std::span(header_)));
    file_->sync_and_close();
    file_.reset();
  }

  OutputFolder& folder_;
  std::uint64_t limit_;
  std::unique_ptr<NewFile> file_;
  std::string header_;
  std::uint64_t filled_ = 0, total_ = 0;  // bytes of values, in this shard and in all
  int last_bits_ = 0;
  std::vector<std::vector<std::string>> shards_;  // the tensors' names
};

}  // namespace bda::inline v0::checkpoint
