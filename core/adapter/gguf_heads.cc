#include "core/adapter/gguf_heads.h"

#include <fmt/format.h>

#include <cstring>
#include <utility>

namespace adapterd {
namespace {

std::string Shown(const HeadCounts& counts) {
  return fmt::format("{} heads, {} key-value heads", counts.num_attention_heads,
                     counts.num_key_value_heads);
}

// `undo`: out of ggml's order; else into it.
Tensor Reorder(const Tensor& matrix, int64_t heads, bool undo) {
  const int64_t rows = matrix.shape()[0];
  const int64_t half = rows / heads / 2;
  const int64_t row_bytes = AsMatrix(matrix).row_bytes();
  AlignedBuffer buffer(matrix.bytes().size());
  const std::byte* from = matrix.bytes().data();
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t j = 0; j < half; ++j) {
      for (int64_t s = 0; s < 2; ++s) {
        const int64_t base_row = head * 2 * half + s * half + j;
        const int64_t ggml_row = head * 2 * half + 2 * j + s;
        const int64_t source = undo ? ggml_row : base_row;
        const int64_t target = undo ? base_row : ggml_row;
        std::memcpy(buffer.data() + target * row_bytes, from + source * row_bytes, row_bytes);
      }
    }
  }
  return Tensor(matrix.dtype(), matrix.shape(), std::move(buffer));
}

}  // namespace

GgufHeads FindGgufHeads(const std::optional<HeadCounts>& requested, const BaseGeometry* base,
                        ProblemList& problems) {
  GgufHeads heads;
  heads.counts = requested;
  if (base == nullptr) return heads;
  heads.head_dim = base->head_dim;
  if (!base->num_attention_heads || !base->num_key_value_heads) return heads;
  const HeadCounts counts = {*base->num_attention_heads, *base->num_key_value_heads};
  if (requested && *requested != counts) {
    problems.Add(Error(Reason::kBaseModelMismatch,
                       fmt::format("head_counts says {}, the base model's config {}",
                                   Shown(*requested), Shown(counts)))
                     .With("field", "head_counts")
                     .With("expected", Shown(counts))
                     .With("actual", Shown(*requested)));
  }
  heads.counts = counts;
  return heads;
}

absl::StatusOr<int64_t> HeadsOfRows(const GgufHeads& heads, RopeHeads whose, int64_t rows) {
  if (!heads.counts) {
    return Error(Reason::kBaseRequired,
                 "the order of its rows depends on the base model's attention heads: give "
                 "base_checkpoint, hosted_base or head_counts")
        .With("field", "head_counts");
  }
  const bool is_query = whose == RopeHeads::kQuery;
  const int64_t count =
      is_query ? heads.counts->num_attention_heads : heads.counts->num_key_value_heads;
  const bool fits = count > 0 && rows % count == 0 && rows / count % 2 == 0 &&
                    (!heads.head_dim || rows / count == *heads.head_dim);
  if (fits) return count;
  const std::string expected = heads.head_dim
                                   ? fmt::format("{} heads of {} rows", count, *heads.head_dim)
                                   : fmt::format("{} heads of an even number of rows", count);
  return Error(Reason::kBaseModelMismatch,
               fmt::format("its {} rows are not {}, as the base model has them", rows, expected))
      .With("field", "head_counts")
      .With("expected", expected)
      .With("actual", fmt::format("{} rows", rows));
}

Tensor UndoRopeOrder(const Tensor& matrix, int64_t heads) { return Reorder(matrix, heads, true); }

Tensor MakeRopeOrder(const Tensor& matrix, int64_t heads) { return Reorder(matrix, heads, false); }

}  // namespace adapterd
