// Products of few rows by loops of our own, which read packed weights once at the speed of the
// memory that holds them; oneDNN's take up to twice as long (docs/adr/0009). For this room only.
#ifndef ADAPTERD_CORE_COMPUTE_SMALL_ROWS_H_
#define ADAPTERD_CORE_COMPUTE_SMALL_ROWS_H_

#include <cstddef>
#include <cstdint>

namespace adapterd {

// destination [rows, n] = source [rows, k] x weights [k, n], or += to accumulate. Sums are F32;
// source and weights are both F32 or both BF16.
struct SmallProduct {
  int64_t rows = 0;
  int64_t k = 0;
  int64_t n = 0;
  const void* source = nullptr;  // aligned to its elements
  int64_t source_stride = 0;     // elements from row to row
  // Panels as in MatmulShape. Row-major weights are one panel, as wide as the matrix.
  const std::byte* weights = nullptr;
  bool weights_are_f16 = false;  // of F32 products
  int64_t panel = 0;             // columns of a panel, counting zeros
  int64_t stored_k = 0;          // rows of a panel, counting zeros
  void* destination = nullptr;
  int64_t destination_stride = 0;  // elements from row to row
  bool accumulate = false;
  bool narrow = false;  // the destination is BF16, rounded once, and not F32; not to accumulate
};

// One type's loops, and what they are better at than oneDNN. None: max_rows is 0.
struct SmallRows {
  void (*multiply)(const SmallProduct&) = nullptr;
  int64_t max_rows = 0;
  int64_t max_f16_rows = 0;  // where both factors are F16, which oneDNN would get widened
  int64_t max_rank = 0;
};

#if defined(__x86_64__)
// REQUIRES: a CPU with AVX512F, BW and VL; F32 but for the weights; one row, of F16 weights any
// number.
void MultiplyRowsAvx512(const SmallProduct& product);
// REQUIRES: a process that may use AMX; BF16 in panels; up to 16 rows.
void MultiplyRowsAmx(const SmallProduct& product);
#endif

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_SMALL_ROWS_H_
