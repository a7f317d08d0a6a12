#pragma once

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <utility>
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

namespace detail {

/// Watches a parse for what no checkpoint's file may hold: nesting deeper than `kDeepestNesting`,
/// and a key that stands twice in the same object (parsers differ in which of the two they keep, so
/// such a file has no single meaning).
class JsonGuard {
 public:
  explicit JsonGuard(const std::string& name) : name_(name) {}

  void operator()(int depth, Json::parse_event_t event, const Json& parsed) {
    if (depth > kDeepestNesting)
      throw Error(name_, "nesting of at most " + std::to_string(kDeepestNesting) + " levels",
                  std::to_string(depth) + " levels");
    if (event == Json::parse_event_t::object_start) open_objects_.emplace_back();
    if (event == Json::parse_event_t::object_end) open_objects_.pop_back();
    if (event == Json::parse_event_t::key &&
        !open_objects_.back().insert(parsed.get<std::string>()).second)
      throw Error(name_, "each key once in an object", quote(parsed) + " twice");
  }

 private:
  const std::string& name_;
  std::vector<std::set<std::string>> open_objects_;  // the keys seen in each enclosing object
};

inline Json parse_guarded(std::string_view text, const std::string& name,
                          const Json::parser_callback_t& callback) {
  Json json;
  try {
    json = Json::parse(text.begin(), text.end(), callback);
  } catch (const Json::exception& error) {
    throw Error(name, "well-formed JSON", error.what());
  }
  if (!json.is_object()) throw Error(name, "a JSON object", quote(json));
  return json;
}

}  // namespace detail

/// Parses one JSON object. Throws `Error` on malformed text, on anything but an object at the top,
/// on too deep nesting and on a key that stands twice. `name` is the file's, for the error.
[[nodiscard]] inline Json parse_json_object(std::string_view text, const std::string& name) {
  detail::JsonGuard guard(name);
  return detail::parse_guarded(text, name, [&](int depth, Json::parse_event_t event, Json& parsed) {
    guard(depth, event, parsed);
    return true;
  });
}

/// The same object member by member: `take(key, value)` is called as each has been read, and none
/// is kept, so that a long object costs no more memory than its longest member.
template <class Take>
void visit_json_members(std::string_view text, const std::string& name, const Take& take) {
  using Event = Json::parse_event_t;
  detail::JsonGuard guard(name);
  std::string key;
  detail::parse_guarded(text, name, [&](int depth, Event event, Json& parsed) {
    guard(depth, event, parsed);
    if (depth != 1) return true;
    if (event == Event::key) key = parsed.template get<std::string>();
    if (event != Event::value && event != Event::object_end && event != Event::array_end)
      return true;
    take(std::as_const(key), std::as_const(parsed));
    return false;
  });
}

}  // namespace bda::inline v0::checkpoint
