// Codes of NF4 to values and back. For this room only.
#ifndef ADAPTERD_CORE_COMPUTE_NF4_CODES_H_
#define ADAPTERD_CORE_COMPUTE_NF4_CODES_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace adapterd {

// Where one level gives way to the next: values above limits[i] have a code above i. A value is
// compared with the exact middle between two levels x absmax, rounded down to F32, which F32 values
// are above exactly when they are above the middle.
using Nf4Limits = std::array<float, 15>;
Nf4Limits LimitsFor(float absmax);

// What is stored of a matrix: its first element is the upper half of the first byte, block i of
// `block_size` elements belongs to absmax[i].
struct Nf4View {
  const std::byte* codes = nullptr;
  const float* absmax = nullptr;
  int64_t block_size = 1;
};

// The two loops, compiled for one instruction set.
struct Nf4Codes {
  std::string_view name;
  // The code of each value, one a byte.
  void (*encode)(const float* values, int64_t count, const Nf4Limits& limits, uint8_t* codes);
  // to[i] = level x absmax of element first + i.
  void (*decode)(const Nf4View& matrix, int64_t first, int64_t count, float* to);
};

// Those that this CPU runs, the fastest first.
std::vector<Nf4Codes> Nf4CodesVariants();

// The first of them.
const Nf4Codes& FastestNf4Codes();

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_NF4_CODES_H_
