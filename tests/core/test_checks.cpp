#include <bda/core/checks.hpp>
#include <catch2/catch_test_macros.hpp>
#include <limits>

#include "support/error_of.hpp"

namespace {

namespace check = bda::check;
using bda_test::error_of;

constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();

TEST_CASE("An error keeps its three parts and says them in one line") {
  const bda::Error error("x.rows", "at least 1", "0");
  CHECK(error.name() == "x.rows");
  CHECK(error.expected() == "at least 1");
  CHECK(error.given() == "0");
  CHECK(std::string(error.what()) == "x.rows: expected at least 1, got 0");
}

TEST_CASE("check::equal") {
  CHECK_NOTHROW(check::equal("a", 3, 3));
  CHECK(std::string(error_of([] { check::equal("a", -2, 3); }).what()) == "a: expected 3, got -2");
  CHECK(std::string(error_of([] { check::equal("a", kMax, 3, "rows"); }).what()) ==
        "a: expected 3 (rows), got 9223372036854775807");
}

TEST_CASE("check::in_range includes both ends") {
  CHECK_NOTHROW(check::in_range("a", 1, 1, 5));
  CHECK_NOTHROW(check::in_range("a", 5, 1, 5));
  CHECK(std::string(error_of([] { check::in_range("a", 0, 1, 5); }).what()) ==
        "a: expected a value from 1 to 5, got 0");
  CHECK(error_of([] { check::in_range("a", 6, 1, 5); }).given() == "6");
}

TEST_CASE("check::at_least includes its bound") {
  CHECK_NOTHROW(check::at_least("a", 2, 2));
  CHECK(std::string(error_of([] { check::at_least("a", 1, 2); }).what()) ==
        "a: expected at least 2, got 1");
}

TEST_CASE("check::multiple_of asks for a positive multiple of a positive factor") {
  CHECK_NOTHROW(check::multiple_of("a", 12, 4));
  CHECK(std::string(error_of([] { check::multiple_of("a", 10, 4, "heads"); }).what()) ==
        "a: expected a positive multiple of 4 (heads), got 10");
  CHECK(error_of([] { check::multiple_of("a", 0, 4); }).given() == "0");
  CHECK(error_of([] { check::multiple_of("a", -4, 4); }).given() == "-4");
  CHECK(error_of([] { check::multiple_of("a", 4, 0); }).expected() == "a positive multiple of 0");
}

}  // namespace
