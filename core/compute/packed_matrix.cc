#include "core/compute/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/compute/scratch.h"
#include "core/compute/stream.h"
#include "core/tensor/convert.h"
#include "core/tensor/transpose.h"

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

// Transposes rows of `words` words into a strip of a panel, whose rows are `stride` bytes long.
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

// Word j of row i of `source` goes to row j, column i of a panel of `width` words a row. Words are
// one element of 16 bits or two.
template <typename Word>
void PackHalves(const MatrixView& source, std::byte* panel, int64_t width) {
  constexpr int64_t kPerWord = sizeof(Word) / 2;
  constexpr int64_t kWordBytes = sizeof(Word);
  constexpr int64_t kRows = kLineBytes / kWordBytes;
  const int64_t words = source.cols / kPerWord;
  const int64_t stride = width * kWordBytes;
  for (int64_t row = 0; row < source.rows; row += kRows) {
    const MatrixView rows = source.Rows(row, std::min(kRows, source.rows - row));
    std::byte* strip = panel + row * kWordBytes;
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

void PackF32(const MatrixView& source, std::byte* panel, int64_t width) {
  float tile[kStripRows][kTileElements];
  const int64_t element = FloatBytes(source.dtype);
  const int64_t stride = width * static_cast<int64_t>(sizeof(float));
  for (int64_t row = 0; row < source.rows; row += kStripRows) {
    const MatrixView rows = source.Rows(row, std::min(kStripRows, source.rows - row));
    std::byte* strip = panel + row * static_cast<int64_t>(sizeof(float));
    if (source.dtype == DType::kF32) {
      TransposeStrip<uint32_t>(rows.data, rows.row_bytes(), rows.rows, rows.cols, strip, stride);
      continue;
    }
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

// Undoes PackF32 when a word is an F32, else PackHalves.
template <typename Word, DType kType>
void Unpack(const std::byte* panel, int64_t width, const MutableMatrixView& destination) {
  constexpr int64_t kPerWord = sizeof(Word) / FloatBytes(kType);
  std::byte tile[kStripRows][kTileElements * sizeof(float)];
  float wide[kTileElements];
  const int64_t stride = width * static_cast<int64_t>(sizeof(Word));
  for (int64_t row = 0; row < destination.rows; row += kStripRows) {
    const MutableMatrixView rows =
        destination.Rows(row, std::min(kStripRows, destination.rows - row));
    const std::byte* strip = panel + row * static_cast<int64_t>(sizeof(Word));
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
  return elements.has_value() ? CheckedMul(*elements, element_bytes()) : std::nullopt;
}

absl::StatusOr<PackedMatrix> PackedMatrix::Allocate(const MatrixPlan& plan) {
  const std::optional<int64_t> bytes = plan.bytes();
  if (!bytes.has_value()) {
    return Error(Reason::kShapeMismatch, "a matrix is too large to pack");
  }
  PackedMatrix matrix(plan, *bytes);
  for (int64_t first = 0; first < plan.n; first += plan.chunk) {
    Chunk chunk = {first, std::min(plan.chunk, plan.n - first), nullptr};
    chunk.weights = matrix.buffer_.data() + matrix.OffsetOf(chunk);
    matrix.chunks_.push_back(chunk);
  }
  return matrix;
}

template <typename Body>
void PackedMatrix::ForEachPanel(Body body) const {
  for (const Chunk& chunk : chunks_) {
    const int64_t width = WidthOf(chunk);
    for (int64_t col = 0; col < chunk.columns; col += width) {
      body(Panel{OffsetOf(chunk) + col * plan_.stored_k() * plan_.element_bytes(), width,
                 chunk.first_column + col, std::min(width, chunk.columns - col)});
    }
  }
}

absl::StatusOr<PackedMatrix> PackedMatrix::Create(const MatrixPlan& plan) {
  ASSIGN_OR_RETURN(PackedMatrix matrix, Allocate(plan));
  std::ranges::fill(matrix.buffer_.span(), std::byte{0});
  return matrix;
}

absl::StatusOr<PackedMatrix> PackedMatrix::Transposed(const MatrixPlan& plan,
                                                      const MatrixView& source) {
  ASSIGN_OR_RETURN(PackedMatrix matrix, Allocate(plan));
  // Panel by panel, because the two often share pages.
  matrix.ForEachPanel([&](const Panel& panel) {
    matrix.ZeroAround(source, panel);
    matrix.FillPanel(source, 0, panel);
  });
  FinishStreams();
  return matrix;
}

int64_t PackedMatrix::OffsetOf(const Chunk& chunk) const {
  return chunk.first_column * plan_.stored_k() * plan_.element_bytes();
}

void PackedMatrix::ZeroAround(const MatrixView& source, const Panel& panel) {
  const int64_t together = plan_.type == ComputeType::kBF16 && plan_.panel != 0 ? 2 : 1;
  const int64_t row_bytes = panel.width * plan_.element_bytes();
  const bool all_columns = panel.first_column + panel.width <= source.rows;
  const int64_t filled = all_columns ? RoundUp(source.cols, together) * row_bytes : 0;
  std::byte* data = buffer_.data() + panel.offset;
  Zero(data + filled, data + plan_.stored_k() * row_bytes);
}

void PackedMatrix::FillPanel(const MatrixView& source, int64_t first_k, const Panel& panel) {
  // The plan may have more columns than the source has rows: they stay zero.
  const int64_t count = std::min(panel.columns, source.rows - panel.first_column);
  if (count <= 0) return;
  const MatrixView rows = source.Rows(panel.first_column, count);
  std::byte* data = buffer_.data() + panel.offset + first_k * panel.width * plan_.element_bytes();
  if (plan_.type == ComputeType::kF32 && !plan_.is_f16) {
    PackF32(rows, data, panel.width);
  } else if (plan_.is_f16 || plan_.panel == 0) {
    PackHalves<uint16_t>(rows, data, panel.width);
  } else {
    PackHalves<uint32_t>(rows, data, panel.width);
  }
}

void PackedMatrix::FillTransposed(const MatrixView& source, int64_t first_k) {
  ForEachPanel([&](const Panel& panel) { FillPanel(source, first_k, panel); });
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

const std::byte* PackedMatrix::ForKernel(int64_t first_column, int64_t columns) const {
  const std::byte* stored = At(first_column);
  if (!plan_.is_f16) return stored;
  const int64_t stored_columns = plan_.panel == 0 ? columns : RoundUp(columns, plan_.panel);
  const int64_t count = stored_columns * plan_.stored_k();
  auto* wide = Scratch::OfThisThread().Get<float>(Scratch::kWideFactor, count);
  ConvertToF32(DType::kF16, stored, wide, count);
  return reinterpret_cast<const std::byte*>(wide);
}

void PackedMatrix::UnpackTransposed(const MutableMatrixView& destination) const {
  ForEachPanel([&](const Panel& panel) {
    const int64_t count = std::min(panel.columns, destination.rows - panel.first_column);
    if (count <= 0) return;
    const MutableMatrixView rows = destination.Rows(panel.first_column, count);
    const std::byte* data = buffer_.data() + panel.offset;
    if (plan_.is_f16) {
      Unpack<uint16_t, DType::kF16>(data, panel.width, rows);
    } else if (plan_.type == ComputeType::kF32) {
      Unpack<uint32_t, DType::kF32>(data, panel.width, rows);
    } else if (plan_.panel == 0) {
      Unpack<uint16_t, DType::kBF16>(data, panel.width, rows);
    } else {
      Unpack<uint32_t, DType::kBF16>(data, panel.width, rows);
    }
  });
}

}  // namespace adapterd
