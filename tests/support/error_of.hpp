#pragma once

#include <bda/core/error.hpp>
#include <catch2/catch_test_macros.hpp>

namespace bda_test {

/// The bda::Error that `call` throws; fails the test where it throws none.
template <class Call>
bda::Error error_of(const Call& call) {
  try {
    call();
  } catch (const bda::Error& error) {
    return error;
  }
  FAIL("no bda::Error was thrown");
  return {"", "", ""};
}

}  // namespace bda_test
