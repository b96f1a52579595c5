#include "core/compute/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

constexpr int64_t kWidestPanel = 64;
// Up to this many rows panels would store most of them as zeros, for kernels that are a tenth
// faster.
constexpr int64_t kRowMajorRows = 8;
// oneDNN's kernels count in 32 bits.
constexpr int64_t kMaxDimension = std::numeric_limits<int32_t>::max();

// What is transposed at once, in words of one or two elements.
constexpr int64_t kTileRows = 16;  // a cache line of words; divides every panel
constexpr int64_t kTileWords = 128;
constexpr int64_t kTileElements = 2 * kTileWords;  // of a row

void LoadWords(DType dtype, const std::byte* from, int64_t count, float* words) {
  ConvertToF32(dtype, from, words, count);
}

template <typename Word>
void LoadWords(DType /*dtype*/, const std::byte* from, int64_t count, Word* words) {
  words[(count * 2 - 1) / static_cast<int64_t>(sizeof(Word))] = 0;  // a last pair may be half full
  std::memcpy(words, from, count * 2);
}

void StoreWords(const float* words, int64_t count, DType dtype, std::byte* to) {
  ConvertFromF32(words, dtype, to, count);
}

// Words of BF16.
template <typename Word>
void StoreWords(const Word* words, int64_t count, DType dtype, std::byte* to) {
  const auto* bytes = reinterpret_cast<const std::byte*>(words);
  if (dtype == DType::kBF16) {
    std::memcpy(to, bytes, count * 2);
    return;
  }
  float wide[kTileElements];
  ConvertToF32(DType::kBF16, bytes, wide, count);
  ConvertFromF32(wide, dtype, to, count);
}

// Writes word j of row i of `source` to destination[offset(i) + j * width], where a word is
// `per_word` elements and offset(i) is column i of panels of `width` columns, `panel_words` long.
template <typename Word>
void TransposeWords(const MatrixView& source, int64_t per_word, int64_t width, int64_t panel_words,
                    Word* destination) {
  Word tile[kTileRows][kTileWords];
  const int64_t element = FloatBytes(source.dtype);
  for (int64_t row = 0; row < source.rows; row += kTileRows) {
    const int64_t rows = std::min(kTileRows, source.rows - row);
    Word* strip = destination + row / width * panel_words + row % width;
    for (int64_t col = 0; col < source.cols; col += kTileWords * per_word) {
      const int64_t cols = std::min(kTileWords * per_word, source.cols - col);
      for (int64_t i = 0; i < rows; ++i) {
        LoadWords(source.dtype, source.data + ((row + i) * source.cols + col) * element, cols,
                  tile[i]);
      }
      Word* out = strip + col / per_word * width;
      for (int64_t j = 0; j < CeilDiv(cols, per_word); ++j, out += width) {
        for (int64_t i = 0; i < rows; ++i) out[i] = tile[i][j];
      }
    }
  }
}

// Undoes TransposeWords.
template <typename Word>
void TransposeBack(const Word* source, int64_t per_word, int64_t width, int64_t panel_words,
                   const MutableMatrixView& destination) {
  Word tile[kTileRows][kTileWords];
  const int64_t element = FloatBytes(destination.dtype);
  for (int64_t row = 0; row < destination.rows; row += kTileRows) {
    const int64_t rows = std::min(kTileRows, destination.rows - row);
    const Word* strip = source + row / width * panel_words + row % width;
    for (int64_t col = 0; col < destination.cols; col += kTileWords * per_word) {
      const int64_t cols = std::min(kTileWords * per_word, destination.cols - col);
      const Word* in = strip + col / per_word * width;
      for (int64_t j = 0; j < CeilDiv(cols, per_word); ++j, in += width) {
        for (int64_t i = 0; i < rows; ++i) tile[i][j] = in[i];
      }
      for (int64_t i = 0; i < rows; ++i) {
        StoreWords(tile[i], cols, destination.dtype,
                   destination.data + ((row + i) * destination.cols + col) * element);
      }
    }
  }
}

}  // namespace

MatrixPlan MatrixPlan::Wide(const Kernels::Impl& kernels, ComputeType type, int64_t k, int64_t n) {
  const bool panels = kernels.has_panels(type) && k > kRowMajorRows;
  return {type, k, n, panels ? kWidestPanel : 0, std::min(n, kChunkColumns)};
}

int64_t MatrixPlan::stored_k() const { return panel == 0 ? k : RoundUp(k, PanelRows(type)); }

std::optional<int64_t> MatrixPlan::bytes() const {
  if (k > kMaxDimension || n > kMaxDimension) return std::nullopt;
  const int64_t stored_n = panel == 0 ? n : RoundUp(n, panel);
  const auto elements = CheckedMul(stored_k(), stored_n);
  return elements.has_value() ? CheckedMul(*elements, ElementBytes(type)) : std::nullopt;
}

PackedMatrix::PackedMatrix(const MatrixPlan& plan, size_t bytes) : plan_(plan), buffer_(bytes) {
  std::ranges::fill(buffer_.span(), std::byte{0});
}

absl::StatusOr<PackedMatrix> PackedMatrix::Create(const Kernels::Impl& kernels,
                                                  const MatrixPlan& plan) {
  const std::optional<int64_t> bytes = plan.bytes();
  if (!bytes.has_value()) {
    return Error(Reason::kShapeMismatch, "a matrix is too large to pack");
  }
  PackedMatrix matrix(plan, *bytes);
  for (int64_t first = 0; first < plan.n; first += plan.chunk) {
    Chunk chunk = {first, std::min(plan.chunk, plan.n - first), {}};
    ASSIGN_OR_RETURN(chunk.weights,
                     kernels.Weights(plan.type, plan.k, chunk.columns, plan.panel,
                                     matrix.buffer_.data() + matrix.OffsetOf(chunk)));
    matrix.chunks_.push_back(std::move(chunk));
  }
  return matrix;
}

int64_t PackedMatrix::OffsetOf(const Chunk& chunk) const {
  return chunk.first_column * plan_.stored_k() * ElementBytes(plan_.type);
}

void PackedMatrix::FillTransposed(const MatrixView& source, int64_t first_k) {
  for (const Chunk& chunk : chunks_) {
    // The plan may have more columns than the source has rows: they stay zero.
    const MatrixView rows =
        source.Rows(chunk.first_column, std::min(chunk.columns, source.rows - chunk.first_column));
    const int64_t width = WidthOf(chunk);
    std::byte* data = buffer_.data() + OffsetOf(chunk);
    if (plan_.type == ComputeType::kF32) {
      TransposeWords(rows, 1, width, plan_.stored_k() * width,
                     reinterpret_cast<float*>(data) + first_k * width);
    } else if (plan_.panel == 0) {
      TransposeWords(rows, 1, width, plan_.stored_k() * width, reinterpret_cast<uint16_t*>(data));
    } else {
      TransposeWords(rows, 2, width, plan_.stored_k() / 2 * width,
                     reinterpret_cast<uint32_t*>(data));
    }
  }
}

void PackedMatrix::Fill(const MatrixView& source, int64_t first_k) {
  const int64_t element = FloatBytes(source.dtype);
  for (const Chunk& chunk : chunks_) {
    const int64_t width = WidthOf(chunk);
    auto* data = reinterpret_cast<float*>(buffer_.data() + OffsetOf(chunk));
    for (int64_t row = 0; row < source.rows; ++row) {
      for (int64_t col = 0; col < chunk.columns; col += width) {
        ConvertToF32(source.dtype,
                     source.data + (row * source.cols + chunk.first_column + col) * element,
                     data + col * plan_.stored_k() + (first_k + row) * width,
                     std::min(width, chunk.columns - col));
      }
    }
  }
}

void PackedMatrix::UnpackTransposed(const MutableMatrixView& destination) const {
  for (const Chunk& chunk : chunks_) {
    const MutableMatrixView rows = destination.Rows(
        chunk.first_column, std::min(chunk.columns, destination.rows - chunk.first_column));
    const int64_t width = WidthOf(chunk);
    const int64_t words = plan_.stored_k() * width;
    const std::byte* data = buffer_.data() + OffsetOf(chunk);
    if (plan_.type == ComputeType::kF32) {
      TransposeBack(reinterpret_cast<const float*>(data), 1, width, words, rows);
    } else if (plan_.panel == 0) {
      TransposeBack(reinterpret_cast<const uint16_t*>(data), 1, width, words, rows);
    } else {
      TransposeBack(reinterpret_cast<const uint32_t*>(data), 2, width, words / 2, rows);
    }
  }
}

}  // namespace adapterd
