// The signs of singular vectors, which are for the algorithm to choose.
#ifndef ADAPTERD_CORE_COMPUTE_SVD_SIGNS_H_
#define ADAPTERD_CORE_COMPUTE_SVD_SIGNS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "core/compute/svd.h"
#include "core/tensor/tensor.h"

namespace adapterd {

// LAPACK decomposes matrices up to this smaller side in some tens of milliseconds. Signs of larger
// ones depend on roundings: a relative change of 1e-6 turns some of them around.
inline constexpr int64_t kMaxSignedSide = 256;

// Turns pairs of singular vectors of `matrix` (D, F32) to where PyTorch's SVD on a CPU has them:
// LAPACK's gesdd, after a QR of D if it has half as many rows again as columns, and on the lower
// triangle of D = L Q when it has more columns than rows (which is what MKL's does). Neither the
// product nor the values change. REQUIRES: no side is 0, the smaller one at most kMaxSignedSide.
//
// Source: LAPACK 3.11, SRC/sgesdd.f; MKL's order of steps by comparison with torch.linalg.svd.
// INTERNAL when LAPACK does not converge. Pure; any thread.
absl::Status TurnAsLapack(const MatrixView& matrix, TruncatedSvd& svd);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_SVD_SIGNS_H_
