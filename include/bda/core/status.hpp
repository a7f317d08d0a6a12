#pragma once

#include <cstdint>
#include <string>

namespace bda::inline v0 {

/// What inference entry points return: success, or the argument at fault with both values.
///
/// It holds no memory of its own, so that the inference path never allocates; `message()` builds
/// the text when somebody asks. `argument` and `expectation` are string literals.
class [[nodiscard]] Status {
 public:
  enum class Code { kOk, kInvalidArgument, kUnsupported, kWorkspaceTooSmall, kDeviceError };

  constexpr Status() = default;

  /// `argument` broke `expectation` (a phrase such as "equal to kv_dim").
  static constexpr Status error(Code code, const char* argument, const char* expectation,
                                std::int64_t expected, std::int64_t given) {
    Status s;
    s.code_ = code;
    s.argument_ = argument;
    s.expectation_ = expectation;
    s.expected_ = expected;
    s.given_ = given;
    return s;
  }
  static constexpr Status invalid(const char* argument, const char* expectation,
                                  std::int64_t expected, std::int64_t given) {
    return error(Code::kInvalidArgument, argument, expectation, expected, given);
  }

  [[nodiscard]] constexpr bool ok() const { return code_ == Code::kOk; }
  constexpr explicit operator bool() const { return ok(); }
  [[nodiscard]] constexpr Code code() const { return code_; }
  [[nodiscard]] constexpr const char* argument() const { return argument_; }
  [[nodiscard]] constexpr std::int64_t expected() const { return expected_; }
  [[nodiscard]] constexpr std::int64_t given() const { return given_; }

  /// "x.extent(2): expected equal to query_dim = 512, got 500".
  [[nodiscard]] std::string message() const {
    if (ok()) return "ok";
    return std::string(argument_) + ": expected " + expectation_ + " = " +
           std::to_string(expected_) + ", got " + std::to_string(given_);
  }

 private:
  Code code_ = Code::kOk;
  const char* argument_ = "";
  const char* expectation_ = "";
  std::int64_t expected_ = 0, given_ = 0;
};

}  // namespace bda::inline v0
