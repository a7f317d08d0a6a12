#include <bda/core/index_set.hpp>
#include <catch2/catch_test_macros.hpp>

namespace {

TEST_CASE("IndexSet sorts its channels and lists the others") {
  const bda::IndexSet set(7, {5, 0, 3});
  CHECK(set.indices() == std::vector<std::int64_t>{0, 3, 5});
  CHECK(set.rest() == std::vector<std::int64_t>{1, 2, 4, 6});
}

}  // namespace
