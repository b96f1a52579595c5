// Which elements of a matrix are among its largest.
#ifndef ADAPTERD_CORE_COMPOSE_MAGNITUDE_CUT_H_
#define ADAPTERD_CORE_COMPOSE_MAGNITUDE_CUT_H_

#include <bit>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

namespace adapterd {

// Magnitudes of finite floats are ordered as their bits are.
constexpr uint32_t MagnitudeBits(float value) {
  return std::bit_cast<uint32_t>(value) & 0x7fffffffU;
}

// Everything above `bits` is kept, and as many equal ones as `equal` says.
struct MagnitudeCut {
  uint32_t bits = 0;
  int64_t equal = 0;         // of those with exactly these bits, the first ones
  bool splits_ties = false;  // there are more of them
};

inline constexpr int kCutPasses = 3;

// Calls its argument with all elements, in pieces; kCutPasses times.
using ForEachPiece = absl::FunctionRef<absl::Status(
    absl::FunctionRef<void(const float* values, int64_t count)> take)>;

// Keeps `kept` of the elements, exactly, without sorting or holding them: a histogram of the upper
// bits, then of those below. `take` may run on several threads at once.
// REQUIRES: 0 <= kept <= the number of elements, which are finite.
absl::StatusOr<MagnitudeCut> FindMagnitudeCut(ForEachPiece for_each, int64_t kept);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPOSE_MAGNITUDE_CUT_H_
