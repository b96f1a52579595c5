// A of an embedding's pair, so that one token id is one run of memory. For this room only.
#ifndef ADAPTERD_CORE_COMPUTE_EMBEDDING_TABLE_H_
#define ADAPTERD_CORE_COMPUTE_EMBEDDING_TABLE_H_

#include <cstdint>
#include <optional>
#include <span>

#include "core/tensor/aligned_buffer.h"
#include "core/tensor/tensor.h"

namespace adapterd {

// Transposed A, [token ids, rank], row-major without padding, in the dtype that A came in.
// Immutable once made; any thread may use it.
class EmbeddingTable {
 public:
  // What a table holds; nullopt when that is more than an int64 holds.
  static std::optional<int64_t> BytesFor(int64_t ids, int64_t rank, DType dtype);

  // a is [rank, token ids].
  explicit EmbeddingTable(const MatrixView& a);

  // rows [ids, rank] = factor * A[:, id], in F32. REQUIRES: every id is in [0, token ids).
  void Lookup(std::span<const int64_t> ids, double factor, float* rows) const;

  // A as it was, converted to `dtype`: [rank, token ids].
  Tensor Unpack(DType dtype) const;

  int64_t bytes() const { return static_cast<int64_t>(buffer_.size()); }

 private:
  const DType dtype_;
  const int64_t ids_;
  const int64_t rank_;
  AlignedBuffer buffer_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_EMBEDDING_TABLE_H_
