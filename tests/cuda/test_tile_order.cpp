#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <utility>
#include <vector>

#include "bda/cuda/pipeline/tile_order.hpp"

using bda::cuda::TileOrder;

namespace {

/// The places of the grid's CTAs in the order in which the device starts them: x first.
std::vector<TileOrder::Place> places(const TileOrder& order) {
  std::vector<TileOrder::Place> result;
  for (unsigned y = 0; y < order.grid_y(); ++y)
    for (unsigned x = 0; x < order.grid_x(); ++x) result.push_back(order.at(x, y));
  return result;
}

}  // namespace

TEST_CASE("a TileOrder takes every tile once", "[cuda][tile_order]") {
  for (int rows = 1; rows <= 70; ++rows)
    for (int columns : {1, 2, 3, 7, 12, 64, 129}) {
      std::vector<int> taken(static_cast<std::size_t>(rows * columns));
      for (const auto& [row, column] : places(TileOrder(rows, columns))) {
        if (row < 0 || row >= rows || column < 0 || column >= columns)
          FAIL(rows << " x " << columns << ": " << row << ", " << column);
        ++taken[static_cast<std::size_t>(row * columns + column)];
      }
      CHECK(std::all_of(taken.begin(), taken.end(), [](int count) { return count == 1; }));
    }
  const std::vector<TileOrder::Place> one = places(TileOrder());
  REQUIRE(one.size() == 1);
  CHECK(std::pair(one[0].row, one[0].column) == std::pair(0, 0));
  const TileOrder large(100003, 2600);
  const TileOrder::Place last = large.at(large.grid_x() - 1, 0);
  CHECK(large.grid_y() == 1);
  CHECK(std::pair(last.row, last.column) == std::pair(100002, 2599));
}

TEST_CASE("a TileOrder's groups are four rows, the last one what is left", "[cuda][tile_order]") {
  const std::vector<TileOrder::Place> order = places(TileOrder(11, 5));
  const auto at = [&](std::size_t i) { return std::pair(order[i].row, order[i].column); };
  CHECK(at(0) == std::pair(0, 0));
  CHECK(at(3) == std::pair(3, 0));
  CHECK(at(4) == std::pair(0, 1));
  CHECK(at(19) == std::pair(3, 4));
  CHECK(at(20) == std::pair(4, 0));
  CHECK(at(40) == std::pair(8, 0));
  CHECK(at(42) == std::pair(10, 0));
  CHECK(at(43) == std::pair(8, 1));
  CHECK(at(54) == std::pair(10, 4));
  const std::vector<TileOrder::Place> few = places(TileOrder(3, 2));
  CHECK(std::pair(few[2].row, few[2].column) == std::pair(2, 0));
  CHECK(std::pair(few[3].row, few[3].column) == std::pair(0, 1));
}
