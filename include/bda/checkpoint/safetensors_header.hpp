#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bda/checkpoint/json.hpp"

/// The safetensors format: eight bytes of header length (little-endian), a JSON header that gives
/// every tensor's type, shape and byte range, then the values, row-major and little-endian.
namespace bda::inline v0::checkpoint {

static_assert(std::endian::native == std::endian::little,
              "safetensors values are little-endian and read as they are");

/// An element type of the format: its name in the header and its width.
struct ElementType {
  std::string_view name;
  int bits = 0;

  friend bool operator==(const ElementType&, const ElementType&) = default;
};

/// Every type the format defines: a file may hold any of them beside the tensors that are read.
inline constexpr std::array<ElementType, 22> kElementTypes{{
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"F64", 64},    {"I64", 64},
    {"U64", 64},        {"C64", 64},
}};

/// The type of that name; null for none.
[[nodiscard]] constexpr const ElementType* find_element_type(std::string_view name) {
  const auto* found = std::find_if(kElementTypes.begin(), kElementTypes.end(),
                                   [&](const ElementType& t) { return t.name == name; });
  return found == kElementTypes.end() ? nullptr : found;
}

/// One tensor of an open file; its bytes live as long as the file does.
struct Tensor {
  std::string name;
  ElementType type;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;  // not aligned to the element size
  std::string file;                  // for errors

  /// The number of elements.
  [[nodiscard]] std::int64_t size() const {
    std::int64_t n = 1;
    for (std::int64_t extent : shape) n *= extent;
    return n;
  }
  /// "FILE: NAME", how errors call it.
  [[nodiscard]] std::string label() const { return file + ": " + name; }
};

/// "[2, 3]".
[[nodiscard]] inline std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

/// What a safetensors file holds.
struct SafetensorsContent {
  std::map<std::string, std::string> metadata;  // `__metadata__`, empty where there is none
  std::map<std::string, Tensor> tensors;        // by name; their bytes lie within the file's
};

namespace detail {

class SafetensorsParser {
 public:
  SafetensorsParser(std::span<const std::byte> file, const std::string& label)
      : file_(file), label_(label) {}

  SafetensorsContent run() {
    const std::string_view header = header_text();
    std::vector<Entry> entries = parse_header(header);
    const std::span<const std::byte> data = file_.subspan(kPrefix + header.size());
    check_ranges(entries, data.size());
    for (Entry& entry : entries) {
      entry.tensor.bytes = data.subspan(entry.begin, entry.end - entry.begin);
      std::string name = entry.tensor.name;
      content_.tensors.emplace(std::move(name), std::move(entry.tensor));
    }
    return std::move(content_);
  }

 private:
  struct Entry {
    Tensor tensor;
    std::uint64_t begin, end;  // bytes, from the end of the header
  };

  /// The format's own limit, 100 MB: a longer header is taken for a damaged length.
  static constexpr std::uint64_t kLongestHeader = 100'000'000;
  /// Far more than any tensor's: errors that print a shape stay short.
  static constexpr std::size_t kMostExtents = 64;
  static constexpr std::size_t kPrefix = sizeof(std::uint64_t);  // the header's length

  [[nodiscard]] std::string_view header_text() const {
    if (file_.size() < kPrefix)
      throw Error(label_, "at least 8 bytes (the header's length)",
                  std::to_string(file_.size()) + " bytes");
    std::uint64_t length = 0;
    std::memcpy(&length, file_.data(), kPrefix);
    if (length > kLongestHeader)
      throw Error(label_ + ": header length", "at most " + std::to_string(kLongestHeader),
                  std::to_string(length));
    if (length > file_.size() - kPrefix)
      throw Error(label_ + ": header length",
                  "at most " + std::to_string(file_.size() - kPrefix) + " (the rest of the file)",
                  std::to_string(length));
    return {reinterpret_cast<const char*>(file_.data() + kPrefix), length};
  }

  /// Every tensor's entry, in no particular order; fills content_.metadata.
  std::vector<Entry> parse_header(std::string_view text) {
    const std::string label = label_ + ": header";
    if (!text.starts_with('{'))
      throw Error(label, "a first character {", quote(Json(std::string(text.substr(0, 1)))));
    std::vector<Entry> entries;
    visit_json_members(text, label, [&](const std::string& name, const Json& value) {
      if (name == "__metadata__")
        read_metadata(value);
      else
        entries.push_back(read_entry(name, value));
    });
    return entries;
  }

  void read_metadata(const Json& value) {
    const std::string label = label_ + ": __metadata__";
    if (!value.is_object()) throw Error(label, "an object of strings", quote(value));
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string()) throw Error(label + "." + key, "a string", quote(text));
      content_.metadata.emplace(key, text.get<std::string>());
    }
  }

  Entry read_entry(const std::string& name, const Json& value) const {
    Entry entry{};
    entry.tensor.name = name;
    entry.tensor.file = label_;
    const std::string label = entry.tensor.label();
    if (!value.is_object() || value.size() != 3 || !value.contains("dtype") ||
        !value.contains("shape") || !value.contains("data_offsets"))
      throw Error(label, "an object with dtype, shape and data_offsets", quote(value));

    const Json& dtype = value["dtype"];
    const ElementType* known =
        dtype.is_string() ? find_element_type(dtype.get<std::string>()) : nullptr;
    if (known == nullptr)
      throw Error(label + ".dtype", "a type of the safetensors format", quote(dtype));
    entry.tensor.type = *known;

    const Json& shape = value["shape"];
    if (!shape.is_array()) throw Error(label + ".shape", "an array of extents", quote(shape));
    if (shape.size() > kMostExtents)
      throw Error(label + ".shape", "at most " + std::to_string(kMostExtents) + " extents",
                  std::to_string(shape.size()));
    std::uint64_t bits = static_cast<std::uint64_t>(known->bits);
    for (const Json& extent : shape) {
      constexpr auto kLargest =
          static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
      if (!extent.is_number_unsigned() || extent.get<std::uint64_t>() > kLargest)
        throw Error(label + ".shape", "extents from 0 to 2^63 - 1", quote(shape));
      const auto n = extent.get<std::uint64_t>();
      if (n != 0 && bits > kLargest / n)
        throw Error(label + ".shape", "a product below 2^63 bits", quote(shape));
      bits *= n;
      entry.tensor.shape.push_back(static_cast<std::int64_t>(n));
    }
    if (bits % 8 != 0)
      throw Error(label + ".shape", "a whole number of bytes of " + std::string(known->name),
                  quote(shape));

    const Json& offsets = value["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned())
      throw Error(label + ".data_offsets", "two byte offsets, begin and end", quote(offsets));
    entry.begin = offsets[0].get<std::uint64_t>();
    entry.end = offsets[1].get<std::uint64_t>();
    if (entry.begin > entry.end)
      throw Error(label + ".data_offsets", "begin <= end", quote(offsets));
    if (entry.end - entry.begin != bits / 8)
      throw Error(label + ".data_offsets",
                  std::to_string(bits / 8) + " bytes (shape " + quote(shape) + " of " +
                      std::string(known->name) + ")",
                  quote(offsets) + ", " + std::to_string(entry.end - entry.begin) + " bytes");
    return entry;
  }

  /// The ranges, in order, must tile [0, data_size): that leaves no room for overlaps or holes.
  void check_ranges(std::vector<Entry>& entries, std::uint64_t data_size) const {
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    std::uint64_t next = 0;
    for (const Entry& entry : entries) {
      if (entry.end > data_size)
        throw Error(entry.tensor.label() + ".data_offsets",
                    "an end of at most " + std::to_string(data_size) + " (bytes behind the header)",
                    std::to_string(entry.end));
      if (entry.begin != next)
        throw Error(entry.tensor.label() + ".data_offsets",
                    "a begin of " + std::to_string(next) +
                        " (where the tensor before it ends: no overlap and no hole)",
                    std::to_string(entry.begin));
      next = entry.end;
    }
    if (next != data_size)
      throw Error(label_, std::to_string(next) + " bytes behind the header",
                  std::to_string(data_size) + " bytes, the last of them in no tensor");
  }

  std::span<const std::byte> file_;
  const std::string& label_;
  SafetensorsContent content_;
};

}  // namespace detail

/// Reads the header of a file whose bytes are all of `file`; `label` names it in errors.
///
/// Throws `Error` unless the file is well-formed: header within the file and the limit, known
/// types, shapes that fit their byte range, ranges that cover the data without overlap or hole.
/// Memory is taken for what the header holds, never for what it claims.
[[nodiscard]] inline SafetensorsContent parse_safetensors(std::span<const std::byte> file,
                                                          const std::string& label) {
  return detail::SafetensorsParser(file, label).run();
}

}  // namespace bda::inline v0::checkpoint
