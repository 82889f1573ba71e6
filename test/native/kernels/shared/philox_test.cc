// Philox against the known answers that ship with Random123 (kat_vectors, philox4x32 10), and the
// normals' moments.
#include "kernels/shared/philox.h"

#include <doctest/doctest.h>

using namespace balora;

TEST_CASE("philox gives the reference implementation's known answers") {
  CHECK(philox(0, 0, 0) == PhiloxBlock{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
  CHECK(philox(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}) ==
        PhiloxBlock{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
  CHECK(philox(0x299f31d0a4093822u, 0x85a308d3243f6a88u, 0x0370734413198a2eu) ==
        PhiloxBlock{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});
}

TEST_CASE("philox normals have the moments of a standard normal") {
  constexpr int kPairs = 100000;
  double sum = 0, squares = 0, cross = 0, fourth = 0;
  for (int i = 0; i < kPairs; ++i) {
    const NormalPair z = philox_normals(7, static_cast<uint64_t>(i));
    sum += z.first + z.second;
    squares += z.first * z.first + z.second * z.second;
    cross += z.first * z.second;
    fourth += std::pow(z.first, 4) + std::pow(z.second, 4);
  }
  CHECK(std::abs(sum / (2 * kPairs)) < 0.01);
  CHECK(std::abs(squares / (2 * kPairs) - 1) < 0.02);
  CHECK(std::abs(cross / kPairs) < 0.02);
  CHECK(std::abs(fourth / (2 * kPairs) - 3) < 0.1);
}
