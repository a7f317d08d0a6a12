#include <algorithm>
#include <bda/core/index_set.hpp>
#include <catch2/catch_test_macros.hpp>
#include <numeric>
#include <random>

#include "support/error_of.hpp"

namespace {

using bda::IndexSet;
using bda_test::error_of;
using Channels = std::vector<std::int64_t>;

TEST_CASE("IndexSet sorts its channels and lists the others") {
  const IndexSet set(7, {5, 0, 3});
  CHECK(set.dim() == 7);
  CHECK(set.size() == 3);
  CHECK(set.indices() == Channels{0, 3, 5});
  CHECK(set[1] == 3);
  CHECK(set.rest() == Channels{1, 2, 4, 6});
  CHECK_FALSE(set.is_slice());
  CHECK(set == IndexSet(7, {0, 3, 5}));
  CHECK_FALSE(set == IndexSet(8, {0, 3, 5}));
}

TEST_CASE("Channels and rest are together all channels, for random sets") {
  std::mt19937 random(1);
  for (int trial = 0; trial < 50; ++trial) {
    const std::int64_t dim = 1 + static_cast<std::int64_t>(random() % 90);
    Channels all(static_cast<std::size_t>(dim));
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), random);
    const auto size = static_cast<std::ptrdiff_t>(random() % (all.size() + 1));
    const IndexSet set(dim, Channels(all.begin(), all.begin() + size));

    REQUIRE(set.size() == size);
    const Channels rest = set.rest();
    Channels both;
    std::merge(set.indices().begin(), set.indices().end(), rest.begin(), rest.end(),
               std::back_inserter(both));
    std::sort(all.begin(), all.end());
    REQUIRE(both == all);
    bool contiguous = true;
    for (std::int64_t i = 1; i < set.size(); ++i) contiguous &= set[i] == set[i - 1] + 1;
    REQUIRE(set.is_slice() == contiguous);
  }
}

TEST_CASE("A slice is contiguous, at its offset") {
  const IndexSet slice = IndexSet::slice(10, 4, 3);
  CHECK(slice.indices() == Channels{4, 5, 6});
  CHECK(slice.is_slice());
  CHECK(slice.offset() == 4);
  CHECK(IndexSet::slice(10, 10, 0).size() == 0);
  CHECK(IndexSet::slice(10, 0, 10).rest().empty());
}

TEST_CASE("An empty set is a slice with everything in its rest") {
  const IndexSet none(3, {});
  CHECK(none.is_slice());
  CHECK(none.offset() == 0);
  CHECK(none.rest() == Channels{0, 1, 2});
  CHECK(IndexSet().dim() == 0);
}

TEST_CASE("IndexSet refuses channels that do not exist and repeated ones") {
  CHECK(std::string(error_of([] {
                      IndexSet(4, {0, 4});
                    }).what()) == "IndexSet.indices: expected a value from 0 to 3, got 4");
  CHECK(error_of([] { IndexSet(4, {-1, 2}); }).given() == "-1");
  CHECK(error_of([] { IndexSet(4, {2, 0, 2}); }).given() == "channel 2 twice");
}

TEST_CASE("IndexSet::slice refuses what does not fit") {
  const bda::Error size = error_of([] { return IndexSet::slice(4, 0, 5); });
  CHECK(size.name() == "IndexSet.slice.size");
  CHECK(size.given() == "5");
  const bda::Error offset = error_of([] { return IndexSet::slice(4, 2, 3); });
  CHECK(offset.name() == "IndexSet.slice.offset");
  CHECK(offset.expected() == "a value from 0 to 1");
  CHECK(offset.given() == "2");
  CHECK(error_of([] { return IndexSet::slice(4, -1, 3); }).given() == "-1");
}

}  // namespace
