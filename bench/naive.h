// The projection as an ordinary programmer writes it: two nested loops over plain arrays, one
// thread.
#ifndef ADAPTERD_BENCH_NAIVE_H_
#define ADAPTERD_BENCH_NAIVE_H_

#include "core/tensor/tensor.h"

namespace adapterd::bench {

// output = scale * B (A x) for every row x of the input. All in one dtype, F32 or BF16; sums in
// F32.
void NaiveProjection(const MatrixView& input, const MatrixView& a, const MatrixView& b, float scale,
                     const MutableMatrixView& output);

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_NAIVE_H_
