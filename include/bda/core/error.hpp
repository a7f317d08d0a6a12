#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace bda::inline v0 {

/// What set-up code (preparation, checkpoint reading, construction) throws.
///
/// An error always says which input was wrong, what was expected of it and what was given, so that
/// it can be shown to a user as it is. Inference entry points return a `Status` instead.
class Error : public std::runtime_error {
 public:
  Error(std::string name, std::string expected, std::string given)
      : std::runtime_error(name + ": expected " + expected + ", got " + given),
        name_(std::move(name)),
        expected_(std::move(expected)),
        given_(std::move(given)) {}

  /// The argument, tensor or config field at fault.
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] const std::string& expected() const noexcept { return expected_; }
  [[nodiscard]] const std::string& given() const noexcept { return given_; }

 private:
  std::string name_, expected_, given_;
};

}  // namespace bda::inline v0
