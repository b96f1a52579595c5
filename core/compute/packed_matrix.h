// A weight matrix in the layout that one matmul reads.
#ifndef ADAPTERD_CORE_COMPUTE_PACKED_MATRIX_H_
#define ADAPTERD_CORE_COMPUTE_PACKED_MATRIX_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/compute/onednn.h"
#include "core/tensor/aligned_buffer.h"
#include "core/tensor/tensor.h"

namespace adapterd {

// The sizes and the layout of [k, n] weights.
struct MatrixPlan {
  // Of outputs: their F32 sums then stay in the cache, however many columns there are.
  static constexpr int64_t kChunkColumns = 4096;

  // For few rows and many columns: what expands low-rank rows.
  static MatrixPlan Wide(const Kernels::Impl& kernels, ComputeType type, int64_t k, int64_t n);

  // Rows that are stored, counting the zeros.
  int64_t stored_k() const;
  // Of one that is stored.
  int64_t element_bytes() const { return is_f16 ? 2 : ElementBytes(type); }
  // nullopt when that is more than an int64 holds.
  std::optional<int64_t> bytes() const;

  ComputeType type = ComputeType::kF32;
  int64_t k = 0;
  int64_t n = 0;
  int64_t panel = 0;    // see MatmulShape
  int64_t chunk = 0;    // columns that one matmul takes: n, or a multiple of the panel
  bool is_f16 = false;  // weights of kF32 are stored as F16, for half the memory
};

// Filled once, then immutable and readable from any thread.
class PackedMatrix {
 public:
  // Columns that one matmul takes, stored apart from the others. Not what kernels read when the
  // plan is_f16: see ForKernel.
  struct Chunk {
    int64_t first_column = 0;
    int64_t columns = 0;
    const std::byte* weights = nullptr;
  };

  // All zeros.
  static absl::StatusOr<PackedMatrix> Create(const MatrixPlan& plan);

  // Weights [j, i] = source [i, j], with zeros where the source has nothing: Create and
  // FillTransposed in one pass over the memory.
  static absl::StatusOr<PackedMatrix> Transposed(const MatrixPlan& plan, const MatrixView& source);

  // Weights [first_k + j, i] = source [i, j]: takes the transpose of a row-major matrix.
  // Weights [first_k + i, j] = source [i, j]: takes it as it is; only for F32.
  // Any float type goes into F32; into BF16 only BF16 and into F16 only F16, with first_k == 0.
  void FillTransposed(const MatrixView& source, int64_t first_k);
  void Fill(const MatrixView& source, int64_t first_k);

  // destination [i, j] = weights [j, i]: undoes FillTransposed, bit for bit when the destination
  // has the source's type; any other value is rounded once. It may have fewer rows and columns than
  // the plan, whose zeros it then leaves out.
  void UnpackTransposed(const MutableMatrixView& destination) const;

  const MatrixPlan& plan() const { return plan_; }
  // Where a chunk or a panel begins that has this first column.
  const std::byte* At(int64_t first_column) const {
    return buffer_.data() + first_column * plan_.stored_k() * plan_.element_bytes();
  }
  // The weights from there on as kernels read them. F16 is widened into the calling thread's
  // scratch, where it stays until the next call.
  const std::byte* ForKernel(int64_t first_column, int64_t columns) const;
  const std::vector<Chunk>& chunks() const { return chunks_; }
  int64_t bytes() const { return static_cast<int64_t>(buffer_.size()); }

 private:
  PackedMatrix(const MatrixPlan& plan, size_t bytes) : plan_(plan), buffer_(bytes) {}
  // Of undefined content.
  static absl::StatusOr<PackedMatrix> Allocate(const MatrixPlan& plan);

  // Columns that lie side by side: a panel, or a whole chunk that is row-major.
  struct Panel {
    int64_t offset = 0;  // into the buffer
    int64_t width = 0;   // elements of a row, counting the zeros
    int64_t first_column = 0;
    int64_t columns = 0;
  };
  template <typename Body>
  void ForEachPanel(Body body) const;
  void FillPanel(const MatrixView& source, int64_t first_k, const Panel& panel);
  // Zeros the panel but for where FillPanel(source, 0, panel) writes.
  void ZeroAround(const MatrixView& source, const Panel& panel);

  // Where a chunk begins, and how many of its columns lie side by side.
  int64_t OffsetOf(const Chunk& chunk) const;
  int64_t WidthOf(const Chunk& chunk) const {
    return plan_.panel == 0 ? chunk.columns : plan_.panel;
  }

  MatrixPlan plan_;
  AlignedBuffer buffer_;
  std::vector<Chunk> chunks_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_PACKED_MATRIX_H_
