// output = base_output + sum over adapters of factor * B (A x), for one input and several modules.
#ifndef ADAPTERD_CORE_COMPUTE_PROJECTION_H_
#define ADAPTERD_CORE_COMPUTE_PROJECTION_H_

#include <cstdint>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "core/base/cancellation.h"
#include "core/base/thread_pool.h"
#include "core/compute/packed_pair.h"
#include "core/tensor/tensor.h"

namespace adapterd {

// Of an embedding: one row a token id.
using TokenIds = std::span<const int64_t>;

// Activations [rows, in_features] for linear pairs, or token ids for those of embeddings.
using ProjectionInput = std::variant<MatrixView, TokenIds>;

// What DoRA does to a layer's output (peft/tuners/lora/dora.py): with W's rows no longer of the
// norm that they were, output = bias + gain * (base_output - bias + delta), where base_output holds
// the bias.
struct DoraRescale {
  const float* gain = nullptr;       // [out_features], DoraGains: magnitude / norm
  const float* base_bias = nullptr;  // [out_features], the layer's own; null: it has none
};

// One adapter's part in a segment: delta = factor * (B (A x) + bias).
struct ProjectionTerm {
  const PackedPair* pair = nullptr;
  double factor = 1;                  // request weight x module scale
  const float* bias = nullptr;        // [out_features], B's own; null: it has none
  const DoraRescale* dora = nullptr;  // null: the delta is added as it is

  bool operator==(const ProjectionTerm&) const = default;
};

// A run of rows that share one list of terms; no terms: delta zero. Neighbours with equal lists are
// computed as one.
struct ProjectionSegment {
  int64_t rows = 0;
  std::vector<ProjectionTerm> terms;
};

// One module of a request.
struct ProjectionTarget {
  std::vector<ProjectionSegment> segments;  // their rows add up to the input's
  std::optional<MatrixView> base_output;    // [rows, out_features]
  MutableMatrixView output;                 // [rows, out_features], owned by the caller
};

// Fills every target's output. Low-rank rows are multiplied by the factor in F32; sums over terms,
// biases and base_output are F32, and so is what DoRA does to them; one rounding to the output's
// dtype at the end. NaN and infinities in the input pass through. Rows without terms are
// base_output (converted bit for bit when the dtypes agree), or zero.
//
// REQUIRES: shapes agree (checked by the caller, who can name the fields), dtypes are compute
// floats. A term's pair must be packed for ComputeTypeFor(input.dtype, ...); it is an embedding's
// when the input is token ids, each in [0, in_features), and no embedding's otherwise. A term with
// `dora` is alone in its segment, and its target has a base_output.
//
// Threads: runs on the calling thread and on idle threads of `pool`, in blocks of rows; returns
// when all blocks are done. CANCELLED between blocks once `cancellation` is set; outputs are then
// undefined. Results do not depend on the number of threads. They may differ in the last bits with
// the number of rows in a request.
absl::Status ApplyProjection(const Kernels& kernels, ThreadPool& pool, const ProjectionInput& input,
                             std::span<const ProjectionTarget> targets,
                             const Cancellation& cancellation);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_PROJECTION_H_
