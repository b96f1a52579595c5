#include "core/compute/embedding_table.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/base/checked_math.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

// Transposes columns in blocks whose result the first cache holds at the usual ranks.
template <typename Word>
void TransposeWords(const std::byte* source, int64_t rows, int64_t cols, std::byte* destination) {
  constexpr int64_t kColumns = 64;
  auto* to = reinterpret_cast<Word*>(destination);
  Word run[kColumns];
  for (int64_t first = 0; first < cols; first += kColumns) {
    const int64_t count = std::min(kColumns, cols - first);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t from = (row * cols + first) * static_cast<int64_t>(sizeof(Word));
      std::memcpy(run, source + from, count * sizeof(Word));  // the source may be unaligned
      for (int64_t i = 0; i < count; ++i) to[(first + i) * rows + row] = run[i];
    }
  }
}

void Transpose(const MatrixView& source, std::byte* destination) {
  if (FloatBytes(source.dtype) == 2) {
    TransposeWords<uint16_t>(source.data, source.rows, source.cols, destination);
  } else {
    TransposeWords<uint32_t>(source.data, source.rows, source.cols, destination);
  }
}

}  // namespace

std::optional<int64_t> EmbeddingTable::BytesFor(int64_t ids, int64_t rank, DType dtype) {
  const auto elements = CheckedMul(ids, rank);
  return elements.has_value() ? CheckedMul(*elements, FloatBytes(dtype)) : std::nullopt;
}

EmbeddingTable::EmbeddingTable(const MatrixView& a)
    : dtype_(a.dtype), ids_(a.cols), rank_(a.rows), buffer_(a.bytes()) {
  Transpose(a, buffer_.data());
}

void EmbeddingTable::Lookup(std::span<const int64_t> ids, double factor, float* rows) const {
  const auto scale = static_cast<float>(factor);
  const int64_t row_bytes = rank_ * FloatBytes(dtype_);
  for (const int64_t id : ids) {
    ConvertToF32(dtype_, buffer_.data() + id * row_bytes, rows, rank_);
    for (int64_t i = 0; i < rank_; ++i) rows[i] *= scale;
    rows += rank_;
  }
}

Tensor EmbeddingTable::Unpack(DType dtype) const {
  const int64_t count = ids_ * rank_;
  AlignedBuffer converted;
  const std::byte* table = buffer_.data();
  if (dtype != dtype_) {
    AlignedBuffer wide(count * sizeof(float));
    auto* values = reinterpret_cast<float*>(wide.data());
    ConvertToF32(dtype_, table, values, count);
    converted = AlignedBuffer(count * FloatBytes(dtype));
    ConvertFromF32(values, dtype, converted.data(), count);
    table = converted.data();
  }
  AlignedBuffer result(count * FloatBytes(dtype));
  Transpose({dtype, ids_, rank_, table}, result.data());
  return {dtype, {rank_, ids_}, std::move(result)};
}

}  // namespace adapterd
