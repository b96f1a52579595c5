// Products with rows of an NF4 matrix without bringing its codes into order first: they are read
// 128 at a time, and the input is what is shuffled. For this room only.
#ifndef ADAPTERD_CORE_COMPUTE_NF4_ROWS_H_
#define ADAPTERD_CORE_COMPUTE_NF4_ROWS_H_

#include <cstddef>
#include <cstdint>

#include "core/compute/nf4.h"

namespace adapterd {

// What one CPU has; null functions: nothing, or nothing for this matrix.
struct Nf4Rows {
  // Sum of element first + i x the i-th value, which is at its shuffled place. F32.
  float (*dot)(const Nf4Matrix& matrix, int64_t first, int64_t count,
               const float* shuffled) = nullptr;
  // Elements from `first` on, each at its shuffled place, as the sum of two BF16: see DotLoops.
  void (*split)(const Nf4Matrix& matrix, int64_t first, int64_t count, std::byte* upper,
                std::byte* lower) = nullptr;

  explicit operator bool() const { return dot != nullptr; }
};

// For rows of this matrix: their ends and those of its blocks have to be where 128 codes end, or
// blocks of 64 have to be in pairs.
Nf4Rows RowsOf(const Nf4Matrix& matrix);

// Where value i of a row is put: the values of each 128 are read as the columns of [16, 8], of
// which each pair is swapped, as the halves of a byte are.
constexpr int64_t kNf4Group = 128;
constexpr int64_t ShuffledPlace(int64_t i) {
  const int64_t in_group = i % kNf4Group;
  return i - in_group + (in_group % 8 ^ 1) * 16 + in_group / 8;
}

// Whole rows of `count` values, of which each goes to its place. REQUIRES: count % kNf4Group == 0.
template <typename Word>
void Shuffle(const Word* values, int64_t count, Word* shuffled) {
  for (int64_t i = 0; i < count; ++i) shuffled[ShuffledPlace(i)] = values[i];
}

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_NF4_ROWS_H_
