// How much arithmetic is not worth a thread switch on this machine.
#ifndef ADAPTERD_SERVICE_SHORT_WORK_H_
#define ADAPTERD_SERVICE_SHORT_WORK_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "core/compute/kernels.h"

namespace adapterd {

// DataPlane::short_flops: what this thread computes in kShortWork, measured on a projection of 16
// rows in F32, the slower of the two types, whose operands are in the cache. Takes a few
// milliseconds. Between kMinShortFlops and kMaxShortFlops, whatever else the machine does
// meanwhile.
absl::StatusOr<int64_t> MeasureShortFlops(const Kernels& kernels);

inline constexpr int64_t kMinShortFlops = 1'000'000;
inline constexpr int64_t kMaxShortFlops = 30'000'000;

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_SHORT_WORK_H_
