#pragma once

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "bda/core/error.hpp"

namespace bda::inline v0::checkpoint {

using Json = nlohmann::json;

/// Far deeper than any checkpoint's, and shallow enough that walking a value cannot exhaust the
/// stack.
inline constexpr int kDeepestNesting = 64;

/// At most this much of a value is quoted in an error.
inline constexpr std::size_t kLongestQuote = 120;

/// A value as an error shows it, cut short where it is long.
[[nodiscard]] inline std::string quote(const Json& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kLongestQuote) text = text.substr(0, kLongestQuote) + "...";
  return text;
}

/// Parses one JSON object. Throws `Error` on malformed text, on anything but an object at the top,
/// on nesting deeper than `kDeepestNesting`, and on a key that stands twice in the same object:
/// parsers differ in which of the two they keep, so such a file has no single meaning. `name` is
/// the file's, for the error.
[[nodiscard]] inline Json parse_json_object(std::string_view text, const std::string& name) {
  std::vector<std::set<std::string>> open_objects;  // the keys seen in each enclosing object
  const auto track_keys = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kDeepestNesting)
      throw Error(name, "nesting of at most " + std::to_string(kDeepestNesting) + " levels",
                  std::to_string(depth) + " levels");
    if (event == Json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == Json::parse_event_t::object_end) open_objects.pop_back();
    if (event == Json::parse_event_t::key &&
        !open_objects.back().insert(parsed.get<std::string>()).second)
      throw Error(name, "each key once in an object", quote(parsed) + " twice");
    return true;
  };
  Json json;
  try {
    json = Json::parse(text.begin(), text.end(), track_keys);
  } catch (const Json::exception& error) {
    throw Error(name, "well-formed JSON", error.what());
  }
  if (!json.is_object()) throw Error(name, "a JSON object", quote(json));
  return json;
}

}  // namespace bda::inline v0::checkpoint
