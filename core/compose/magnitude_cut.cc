#include "core/compose/magnitude_cut.h"

#include <array>

#include "absl/synchronization/mutex.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

// Bits that each pass looks at, from the top: together those of a magnitude. Few enough for the
// histogram of a piece to stay in the cache.
constexpr std::array<int, kCutPasses> kWidths = {11, 10, 10};
using Bins = std::array<int64_t, 1 << 11>;

// Adds the elements whose bits above the bin's are `prefix`.
void Count(const float* values, int64_t count, uint32_t prefix, int shift, int width, Bins& bins) {
  const uint32_t mask = (1U << width) - 1;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = MagnitudeBits(values[i]) >> shift;
    if (bits >> width == prefix) ++bins[bits & mask];
  }
}

}  // namespace

absl::StatusOr<MagnitudeCut> FindMagnitudeCut(ForEachPiece for_each, int64_t kept) {
  if (kept == 0) return MagnitudeCut{0x7fffffffU, 0, false};
  MagnitudeCut cut;
  cut.equal = kept;
  int shift = 31;
  for (const int width : kWidths) {
    shift -= width;
    absl::Mutex mutex;
    Bins bins = {};
    RETURN_IF_ERROR(for_each([&](const float* values, int64_t count) {
      Bins own = {};
      Count(values, count, cut.bits, shift, width, own);
      absl::MutexLock lock(&mutex);
      for (size_t bin = 0; bin < own.size(); ++bin) bins[bin] += own[bin];
    }));
    // The bin of the smallest that is kept: all above it are.
    uint32_t bin = (1U << width) - 1;
    while (bin > 0 && bins[bin] < cut.equal) cut.equal -= bins[bin--];
    cut.bits = cut.bits << width | bin;
    cut.splits_ties = bins[bin] > cut.equal;
  }
  return cut;
}

}  // namespace adapterd
