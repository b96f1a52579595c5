// The order of rows in which ggml's RoPE finds the halves of a head side by side.
//
// llama.cpp's converter (LlamaModel.permute) turns row h*d + s*d/2 + j of the base model, where d
// is the size of a head, s = 0 or 1 and j < d/2, into row h*d + 2*j + s.
#ifndef ADAPTERD_CORE_ADAPTER_GGUF_HEADS_H_
#define ADAPTERD_CORE_ADAPTER_GGUF_HEADS_H_

#include <cstdint>
#include <optional>

#include "core/adapter/adapter.h"
#include "core/adapter/base_model_geometry.h"
#include "core/adapter/gguf_names.h"
#include "core/adapter/problems.h"
#include "core/tensor/tensor.h"

namespace adapterd {

// What is known of the base's heads.
struct GgufHeads {
  std::optional<HeadCounts> counts;
  std::optional<int64_t> head_dim;
};

// From the request, and from the base model's config if there is one (null: none). They must agree:
// BASE_MODEL_MISMATCH.
GgufHeads FindGgufHeads(const std::optional<HeadCounts>& requested, const BaseGeometry* base,
                        ProblemList& problems);

// Heads of a module with `rows` rows. BASE_REQUIRED when they are not known, BASE_MODEL_MISMATCH
// when the rows are not those of so many heads.
absl::StatusOr<int64_t> HeadsOfRows(const GgufHeads& heads, RopeHeads whose, int64_t rows);

// The same matrix with the rows as the base model has them, or back. REQUIRES: two dimensions,
// rows in whole heads of an even size.
Tensor UndoRopeOrder(const Tensor& matrix, int64_t heads);
Tensor MakeRopeOrder(const Tensor& matrix, int64_t heads);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_GGUF_HEADS_H_
