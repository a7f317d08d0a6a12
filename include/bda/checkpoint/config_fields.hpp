#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "bda/checkpoint/json.hpp"

namespace bda::inline v0::checkpoint {

/// Reads the fields of one JSON object of a config.json, each at most once, and then refuses what
/// nobody asked for: a field that the library does not know may change the numbers.
///
/// A field whose value is null counts as absent, as it does for the library that writes these
/// files. Every error names the file, the field and its value.
class ConfigFields {
 public:
  /// `label` is the file's name, or "FILE: field" for an object within it.
  ConfigFields(Json object, std::string label)
      : object_(std::move(object)), label_(std::move(label)) {}

  [[nodiscard]] const std::string& label() const { return label_; }

  /// The value, or null where there is none.
  const Json* find(std::string_view key) {
    known_.emplace(key);
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  /// Whether the file has the field, be it null: for those whose absence means another value.
  [[nodiscard]] bool is_given(std::string_view key) const { return object_.contains(key); }

  /// An extent or a count from 1 to 2^31 - 1, so that the product of two of them cannot overflow.
  std::optional<std::int64_t> find_extent(std::string_view key) {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number_integer() || *value < 1 || *value > kLargestExtent)
      refuse(key, "an integer from 1 to " + std::to_string(kLargestExtent));
    return value->get<std::int64_t>();
  }
  std::int64_t extent(std::string_view key) {
    if (const auto value = find_extent(key)) return *value;
    refuse(key, "an integer, which this model type needs");
  }

  /// A number of layers: few enough that a list of them takes no memory to speak of, whatever a
  /// file claims.
  std::int64_t layers(std::string_view key) {
    const std::int64_t count = extent(key);
    if (count > kMostLayers) refuse(key, "at most " + std::to_string(kMostLayers) + " layers");
    return count;
  }

  std::optional<double> find_number(std::string_view key) {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number() || !std::isfinite(value->get<double>())) refuse(key, "a finite number");
    return value->get<double>();
  }
  double positive(std::string_view key, std::optional<double> fallback = std::nullopt) {
    const std::optional<double> value = find_number(key);
    if (!value && fallback) return *fallback;
    if (!value || !(*value > 0)) refuse(key, "a positive number");
    return *value;
  }

  bool flag(std::string_view key, bool fallback) {
    const Json* value = find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) refuse(key, "true or false");
    return value->get<bool>();
  }

  std::optional<std::string> find_text(std::string_view key) {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) refuse(key, "a string");
    return value->get<std::string>();
  }

  /// Where the field is given it must be `expected`; `reason` says why in the error.
  void require(std::string_view key, const Json& expected, std::string_view reason) {
    const Json* value = find(key);
    if (value != nullptr && *value != expected)
      refuse(key, quote(expected) + " (" + std::string(reason) + ")");
  }

  /// Fields that do not change what the model computes.
  void ignore(std::initializer_list<std::string_view> keys) {
    for (std::string_view key : keys) known_.emplace(key);
  }

  /// Refuses the fields that none of the calls above has named.
  void refuse_unknown() const {
    for (const auto& [key, value] : object_.items())
      if (!value.is_null() && !known_.contains(key))
        refuse(key, "a field that this library implements or knows to be irrelevant");
  }

  /// Throws the error for `key` with the value it has.
  [[noreturn]] void refuse(std::string_view key, std::string expected) const {
    const auto found = object_.find(key);
    throw Error(label_ + ": " + std::string(key), std::move(expected),
                found == object_.end() ? "no such field" : quote(*found));
  }

 private:
  static constexpr std::int64_t kLargestExtent = 2147483647;
  static constexpr std::int64_t kMostLayers = 65536;

  Json object_;
  std::string label_;
  std::set<std::string, std::less<>> known_;
};

}  // namespace bda::inline v0::checkpoint
