#pragma once

#include <Eigen/Core>
#include <array>
#include <cstdint>
#include <utility>

/// The innermost product: a register block of the output, on Eigen's packets, so on whatever vector
/// instructions the compiler was told to use.
namespace bda::inline v0::cpu {

/// The register block: accumulators fill the registers but for two packets of the weights and one
/// broadcast activation.
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

/// to [Rows, kCols] = from [Rows, kCols] + a [depth, Rows]ᵀ b [depth, kCols]; a and b are packed, b
/// is aligned to a packet. `to` may be `from`.
template <class C, int Rows>
void multiply_tile(std::int64_t depth, const C* a, const C* b, TileRows<const C> from,
                   TileRows<C> to) {
  using Shape = TileShape<C>;
  using Packet = typename Shape::Packet;
  using Eigen::internal::pload;
  using Eigen::internal::ploadu;
  using Eigen::internal::pmadd;
  using Eigen::internal::pset1;
  using Eigen::internal::pstoreu;

  Packet left[Rows], right[Rows];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    left[i] = ploadu<Packet>(from.data + i * from.stride);
    right[i] = ploadu<Packet>(from.data + i * from.stride + Shape::kLanes);
  }
#ifdef __GNUC__
  // The output comes from memory, and may do so while the sums are formed.
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    __builtin_prefetch(to.data + i * to.stride, 1);
    __builtin_prefetch(to.data + i * to.stride + Shape::kLanes, 1);
  }
#endif
  for (std::int64_t k = 0; k < depth; ++k, a += Rows, b += Shape::kCols) {
    const Packet b_left = pload<Packet>(b), b_right = pload<Packet>(b + Shape::kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const Packet x = pset1<Packet>(a[i]);
      left[i] = pmadd(x, b_left, left[i]);
      right[i] = pmadd(x, b_right, right[i]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    pstoreu(to.data + i * to.stride, left[i]);
    pstoreu(to.data + i * to.stride + Shape::kLanes, right[i]);
  }
}

/// `multiply_tile` for `rows` from 1 to TileShape<C>::kRows.
template <class C>
void multiply_tile(std::int64_t rows, std::int64_t depth, const C* a, const C* b,
                   TileRows<const C> from, TileRows<C> to) {
  using Function = void (*)(std::int64_t, const C*, const C*, TileRows<const C>, TileRows<C>);
  static constexpr auto functions = []<int... I>(std::integer_sequence<int, I...>) {
    return std::array<Function, sizeof...(I)>{&multiply_tile<C, I + 1>...};
  }
  (std::make_integer_sequence<int, TileShape<C>::kRows>{});
  functions[static_cast<std::size_t>(rows - 1)](depth, a, b, from, to);
}

}  // namespace bda::inline v0::cpu
