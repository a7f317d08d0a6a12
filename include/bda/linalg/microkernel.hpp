#pragma once

#include <Eigen/Core>
#include <array>
#include <cstdint>
#include <utility>

/// The innermost product: a register block of the output, on Eigen's packets, so on whatever vector
/// instructions the compiler was told to use.
namespace bda::inline v0::linalg {

/// The register block: accumulators fill the registers but for two packets of the right factor and
/// one broadcast value of the left.
template <class C>
struct TileShape {
  using Packet = typename Eigen::internal::packet_traits<C>::type;
  static constexpr int kLanes = Eigen::internal::unpacket_traits<Packet>::size;
  static constexpr int kCols = 2 * kLanes;
  static constexpr int kRows = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32   ? 14
                               : EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 16 ? 6
                                                                              : 2;
};

/// Rows of kCols values, `stride` apart; 0 repeats one row.
template <class C>
struct TileRows {
  C* data;
  std::int64_t stride;
};

/// The left factor of a register block, [rows, depth], as it lies in memory.
template <class C>
struct ByDepth {  // [depth, rows], `stride` apart
  const C* data;
  std::int64_t stride;
  [[nodiscard]] C at(int row) const { return data[row]; }
  void next() { data += stride; }
};
template <class C, int Stride>
struct ByRow {  // [rows, depth], Stride apart
  const C* data;
  [[nodiscard]] C at(int row) const { return data[row * Stride]; }
  void next() { ++data; }
};

/// to [Rows, kCols] = from [Rows, kCols] + a b with b [depth, kCols]. `to` may be `from`; null data
/// is zeros.
template <class C, int Rows, class Left>
void multiply_tile(std::int64_t depth, Left a, TileRows<const C> b, TileRows<const C> from,
                   TileRows<C> to) {
  using Shape = TileShape<C>;
  using Packet = typename Shape::Packet;
  using Eigen::internal::padd;
  using Eigen::internal::ploadu;
  using Eigen::internal::pmadd;
  using Eigen::internal::pset1;
  using Eigen::internal::pstoreu;

#ifdef __GNUC__
  // The output comes from memory, and may do so while the sums are formed.
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    __builtin_prefetch(to.data + i * to.stride, 1);
    __builtin_prefetch(to.data + i * to.stride + Shape::kLanes, 1);
  }
#endif
  // Sums of their own, which `from` joins at the end: nothing waits for it at the beginning, and
  // what is added up in many blocks of depth loses less.
  Packet left[Rows], right[Rows];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) left[i] = right[i] = pset1<Packet>(C(0));
  for (std::int64_t k = 0; k < depth; ++k, a.next(), b.data += b.stride) {
    const Packet b_left = ploadu<Packet>(b.data), b_right = ploadu<Packet>(b.data + Shape::kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const Packet x = pset1<Packet>(a.at(i));
      left[i] = pmadd(x, b_left, left[i]);
      right[i] = pmadd(x, b_right, right[i]);
    }
  }
  if (from.data != nullptr) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const C* row = from.data + i * from.stride;
      left[i] = padd(ploadu<Packet>(row), left[i]);
      right[i] = padd(ploadu<Packet>(row + Shape::kLanes), right[i]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    pstoreu(to.data + i * to.stride, left[i]);
    pstoreu(to.data + i * to.stride + Shape::kLanes, right[i]);
  }
}

/// `multiply_tile` for `rows` from 1 to TileShape<C>::kRows.
template <class C, class Left>
void multiply_tile(std::int64_t rows, std::int64_t depth, Left a, TileRows<const C> b,
                   TileRows<const C> from, TileRows<C> to) {
  using Function = void (*)(std::int64_t, Left, TileRows<const C>, TileRows<const C>, TileRows<C>);
  static constexpr auto functions = []<int... I>(std::integer_sequence<int, I...>) {
    return std::array<Function, sizeof...(I)>{&multiply_tile<C, I + 1, Left>...};
  }
  (std::make_integer_sequence<int, TileShape<C>::kRows>{});
  functions[static_cast<std::size_t>(rows - 1)](depth, a, b, from, to);
}

/// Rows `[first, last)` of block `index` of `blocks` that share `total` as evenly as possible.
struct Share {
  std::int64_t first, last;
  Share(std::int64_t total, std::int64_t blocks, std::int64_t index)
      : first(total * index / blocks), last(total * (index + 1) / blocks) {}
  [[nodiscard]] std::int64_t size() const { return last - first; }
};

[[nodiscard]] constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace bda::inline v0::linalg
