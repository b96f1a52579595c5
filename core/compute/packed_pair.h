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
  int64_t in_features = 0;  // of an embedding: token ids
  int64_t rank = 0;
  int64_t out_features = 0;

  bool operator==(const PairShape&) const = default;
};

// What a pair multiplies in, and the types of the factors that it is packed from.
struct PairTypes {
  ComputeType type = ComputeType::kF32;
  DType lora_a = DType::kF32;
  DType lora_b = DType::kF32;
};

// Immutable once made; any thread may use it. Holds copies, not the factors it was made from: for
// kBF16 in BF16; for kF32 in F32, but F16 as it is, unless the rank is so high that widening it for
// each product would take more than a thread's scratch. The scale is not folded in: that would
// round B again.
//
// Two kinds: a linear pair takes activations, an embedding's takes token ids: B A applied to an id
// is B times column `id` of A.
class PackedPair {
 public:
  // Bytes that Pack will hold for this shape, exactly: known before anything is allocated.
  // SHAPE_MISMATCH when that is more than the kernels can count.
  static absl::StatusOr<int64_t> BytesFor(const Kernels& kernels, const PairShape& shape,
                                          const PairTypes& types);
  // The same of PackEmbedding. REQUIRES: types.type == kF32.
  static absl::StatusOr<int64_t> EmbeddingBytesFor(const Kernels& kernels, const PairShape& shape,
                                                   const PairTypes& types);

  // a is [rank, in_features], b is [out_features, rank]. For kBF16 both must be BF16; for kF32 any
  // mix of F32, F16 and BF16. REQUIRES: all dimensions > 0 and ranks equal.
  static absl::StatusOr<std::unique_ptr<const PackedPair>> Pack(const Kernels& kernels,
                                                                const MatrixView& a,
                                                                const MatrixView& b,
                                                                ComputeType type);
  // a is [rank, token ids], of which a request reads few columns: they stay in a's dtype. b is
  // [out_features, rank], packed for kF32. REQUIRES: as Pack.
  static absl::StatusOr<std::unique_ptr<const PackedPair>> PackEmbedding(const Kernels& kernels,
                                                                         const MatrixView& a,
                                                                         const MatrixView& b);
  ~PackedPair();

  // The factors again: A [rank, in_features] and B [out_features, rank]. Bit for bit what was
  // packed when `dtype` is the one it came in (a signalling NaN becomes quiet); to any other it is
  // rounded once. REQUIRES: IsComputeFloat(dtype). Cost: as packing.
  Tensor UnpackA(DType dtype) const;
  Tensor UnpackB(DType dtype) const;

  const PairShape& shape() const;
  ComputeType type() const;
  bool is_embedding() const;
  int64_t bytes() const;

  class Impl;
  const Impl& impl() const { return *impl_; }  // for this room only

 private:
  explicit PackedPair(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_PACKED_PAIR_H_
