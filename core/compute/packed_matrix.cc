#include "core/compute/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/compute/stream.h"
#include "core/compute/transpose.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

constexpr int64_t kWidestPanel = 64;
// Up to this many rows panels would store most of them as zeros, for kernels that are a tenth
// faster.
constexpr int64_t kRowMajorRows = 8;
// oneDNN's kernels count in 32 bits.
constexpr int64_t kMaxDimension = std::numeric_limits<int32_t>::max();

// Columns of panels that are written at once: a cache line of words; divides every panel.
constexpr int64_t kStripRows = 16;
// Lines that are made in the first cache before they are stored past it.
constexpr int64_t kTileLines = 32;
// What is converted to F32 at once, so that the first cache holds it.
constexpr int64_t kTileElements = 256;  // of a row

// Panels of `width` words a row, one after the other.
template <typename Byte>
struct PanelsOf {
  Byte* data = nullptr;
  int64_t width = 0;
  int64_t bytes = 0;  // of one

  // Column `row` of the panels, which takes that row of a matrix.
  template <typename Word>
  Byte* Strip(int64_t row) const {
    return data + row / width * bytes + row % width * static_cast<int64_t>(sizeof(Word));
  }
};
using Panels = PanelsOf<std::byte>;
using ConstPanels = PanelsOf<const std::byte>;

// Transposes rows of words, whose tail is `words` long, into a strip of the panels.
template <typename Word>
void TransposeStrip(const std::byte* from, int64_t from_stride, int64_t rows, int64_t words,
                    std::byte* strip, int64_t stride) {
  const bool fills_lines = rows * static_cast<int64_t>(sizeof(Word)) == kLineBytes &&
                           stride % kLineBytes == 0 &&
                           reinterpret_cast<uintptr_t>(strip) % kLineBytes == 0;
  if (!fills_lines) return Transpose<Word>(from, from_stride, rows, words, strip, stride);
  alignas(kLineBytes) std::byte lines[kTileLines][kLineBytes];
  for (int64_t first = 0; first < words; first += kTileLines) {
    const int64_t count = std::min(kTileLines, words - first);
    Transpose<Word>(from + first * static_cast<int64_t>(sizeof(Word)), from_stride, rows, count,
                    lines[0], kLineBytes);
    StreamLines(lines[0], count, strip + first * stride, stride);
  }
}

// Word j of row i of `source` goes to row j, column i of the panels. Words are one BF16 or two.
template <typename Word>
void PackBF16(const MatrixView& source, const Panels& panels) {
  constexpr int64_t kPerWord = sizeof(Word) / 2;
  constexpr int64_t kWordBytes = sizeof(Word);
  const int64_t words = source.cols / kPerWord;
  const int64_t stride = panels.width * kWordBytes;
  for (int64_t row = 0; row < source.rows; row += kStripRows) {
    const MatrixView rows = source.Rows(row, std::min(kStripRows, source.rows - row));
    std::byte* strip = panels.Strip<Word>(row);
    TransposeStrip<Word>(rows.data, rows.row_bytes(), rows.rows, words, strip, stride);
    if (words * kPerWord == source.cols) continue;
    // The last pair of each row is half full.
    for (int64_t i = 0; i < rows.rows; ++i) {
      std::byte* last = strip + words * stride + i * kWordBytes;
      std::memcpy(last, rows.data + (i + 1) * rows.row_bytes() - 2, 2);
      std::fill_n(last + 2, 2, std::byte{0});
    }
  }
}

void PackF32(const MatrixView& source, const Panels& panels) {
  float tile[kStripRows][kTileElements];
  const int64_t element = FloatBytes(source.dtype);
  const int64_t stride = panels.width * static_cast<int64_t>(sizeof(float));
  for (int64_t row = 0; row < source.rows; row += kStripRows) {
    const MatrixView rows = source.Rows(row, std::min(kStripRows, source.rows - row));
    std::byte* strip = panels.Strip<float>(row);
    for (int64_t col = 0; col < source.cols; col += kTileElements) {
      const int64_t cols = std::min(kTileElements, source.cols - col);
      for (int64_t i = 0; i < rows.rows; ++i) {
        ConvertToF32(source.dtype, rows.Rows(i, 1).data + col * element, tile[i], cols);
      }
      TransposeStrip<uint32_t>(reinterpret_cast<const std::byte*>(tile), sizeof(tile[0]), rows.rows,
                               cols, strip + col * stride, stride);
    }
  }
}

void Zero(std::byte* begin, std::byte* end) {
  const auto is_line = [](const std::byte* at) {
    return reinterpret_cast<uintptr_t>(at) % kLineBytes == 0;
  };
  if (is_line(begin) && is_line(end)) return StreamZeros(begin, end);
  std::fill(begin, end, std::byte{0});
}

// Undoes PackF32 when a word is an F32, else PackBF16.
template <typename Word, DType kType>
void Unpack(const ConstPanels& panels, const MutableMatrixView& destination) {
  constexpr int64_t kPerWord = sizeof(Word) / FloatBytes(kType);
  std::byte tile[kStripRows][kTileElements * sizeof(float)];
  float wide[kTileElements];
  const int64_t stride = panels.width * static_cast<int64_t>(sizeof(Word));
  for (int64_t row = 0; row < destination.rows; row += kStripRows) {
    const MutableMatrixView rows =
        destination.Rows(row, std::min(kStripRows, destination.rows - row));
    const std::byte* strip = panels.template Strip<Word>(row);
    for (int64_t col = 0; col < destination.cols; col += kTileElements) {
      const int64_t cols = std::min(kTileElements, destination.cols - col);
      Transpose<Word>(strip + col / kPerWord * stride, stride, CeilDiv(cols, kPerWord), rows.rows,
                      tile[0], sizeof(tile[0]));
      for (int64_t i = 0; i < rows.rows; ++i) {
        std::byte* to = rows.Rows(i, 1).data + col * FloatBytes(destination.dtype);
        if (destination.dtype == kType) {
          std::memcpy(to, tile[i], cols * FloatBytes(kType));
          continue;
        }
        ConvertToF32(kType, tile[i], wide, cols);
        ConvertFromF32(wide, destination.dtype, to, cols);
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

absl::StatusOr<PackedMatrix> PackedMatrix::Allocate(const Kernels::Impl& kernels,
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

absl::StatusOr<PackedMatrix> PackedMatrix::Create(const Kernels::Impl& kernels,
                                                  const MatrixPlan& plan) {
  ASSIGN_OR_RETURN(PackedMatrix matrix, Allocate(kernels, plan));
  std::ranges::fill(matrix.buffer_.span(), std::byte{0});
  return matrix;
}

absl::StatusOr<PackedMatrix> PackedMatrix::Transposed(const Kernels::Impl& kernels,
                                                      const MatrixPlan& plan,
                                                      const MatrixView& source) {
  ASSIGN_OR_RETURN(PackedMatrix matrix, Allocate(kernels, plan));
  matrix.ZeroAround(source);
  matrix.FillTransposed(source, 0);
  return matrix;
}

int64_t PackedMatrix::OffsetOf(const Chunk& chunk) const {
  return chunk.first_column * plan_.stored_k() * ElementBytes(plan_.type);
}

void PackedMatrix::ZeroAround(const MatrixView& source) {
  const int64_t row_pairs = plan_.type == ComputeType::kBF16 && plan_.panel != 0 ? 2 : 1;
  for (const Chunk& chunk : chunks_) {
    const int64_t width = WidthOf(chunk);
    const int64_t row_bytes = width * ElementBytes(plan_.type);
    std::byte* panel = buffer_.data() + OffsetOf(chunk);
    for (int64_t col = 0; col < chunk.columns; col += width) {
      const bool all_columns = chunk.first_column + col + width <= source.rows;
      const int64_t filled = all_columns ? RoundUp(source.cols, row_pairs) * row_bytes : 0;
      const int64_t panel_bytes = plan_.stored_k() * row_bytes;
      Zero(panel + filled, panel + panel_bytes);
      panel += panel_bytes;
    }
  }
}

void PackedMatrix::FillTransposed(const MatrixView& source, int64_t first_k) {
  for (const Chunk& chunk : chunks_) {
    // The plan may have more columns than the source has rows: they stay zero.
    const MatrixView rows =
        source.Rows(chunk.first_column, std::min(chunk.columns, source.rows - chunk.first_column));
    const int64_t width = WidthOf(chunk);
    const int64_t row_bytes = width * ElementBytes(plan_.type);
    const Panels panels = {buffer_.data() + OffsetOf(chunk) + first_k * row_bytes, width,
                           plan_.stored_k() * row_bytes};
    if (plan_.type == ComputeType::kF32) {
      PackF32(rows, panels);
    } else if (plan_.panel == 0) {
      PackBF16<uint16_t>(rows, panels);
    } else {
      PackBF16<uint32_t>(rows, panels);
    }
  }
  FinishStreams();
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
    const ConstPanels panels = {buffer_.data() + OffsetOf(chunk), width,
                                plan_.stored_k() * width * ElementBytes(plan_.type)};
    if (plan_.type == ComputeType::kF32) {
      Unpack<uint32_t, DType::kF32>(panels, rows);
    } else if (plan_.panel == 0) {
      Unpack<uint16_t, DType::kBF16>(panels, rows);
    } else {
      Unpack<uint32_t, DType::kBF16>(panels, rows);
    }
  }
}

}  // namespace adapterd
