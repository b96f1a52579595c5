// The two factors of one module in the layout that the kernels want.
#ifndef ADAPTERD_CORE_COMPUTE_PACKED_PAIR_H_
#define ADAPTERD_CORE_COMPUTE_PACKED_PAIR_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "core/compute/kernels.h"
#include "core/tensor/tensor.h"

namespace adapterd {

struct PairShape {
  int64_t in_features = 0;
  int64_t rank = 0;
  int64_t out_features = 0;

  bool operator==(const PairShape&) const = default;
};

// Immutable once made; any thread may use it. Holds copies, not the factors it was made from. The
// scale is not folded in: that would round B again.
class PackedPair {
 public:
  // Bytes that Pack will hold for this shape, exactly: known before anything is allocated.
  static absl::StatusOr<int64_t> BytesFor(const Kernels& kernels, const PairShape& shape,
                                          ComputeType type);

  // a is [rank, in_features], b is [out_features, rank]. For kBF16 both must be BF16; for kF32 any
  // mix of F32, F16 and BF16. REQUIRES: all dimensions > 0 and ranks equal.
  static absl::StatusOr<std::unique_ptr<const PackedPair>> Pack(const Kernels& kernels,
                                                                const MatrixView& a,
                                                                const MatrixView& b,
                                                                ComputeType type);
  ~PackedPair();

  const PairShape& shape() const;
  ComputeType type() const;
  int64_t bytes() const;

  class Impl;
  const Impl& impl() const { return *impl_; }  // for this room only

 private:
  explicit PackedPair(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_PACKED_PAIR_H_
