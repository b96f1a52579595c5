#include "core/merge/tensor_merge.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

// Read, merged and written at once: enough for a disk and for the kernels, and it stays in a cache
// of the last level.
constexpr int64_t kBlockBytes = int64_t{2} << 20;
// Deltas are computed for so many rows at once (DeltaProduct).
constexpr int64_t kRowUnit = 32;

int64_t BlockRows(int64_t row_bytes) {
  const int64_t rows = kBlockBytes / std::max<int64_t>(row_bytes, 1);
  return std::max(rows / kRowUnit * kRowUnit, int64_t{1});
}

// The system cannot copy between these files, or not in this way: it is done by hand.
bool CannotCopy(int64_t error) {
  return error == -EXDEV || error == -EINVAL || error == -ENOSYS || error == -EOPNOTSUPP ||
         error == -EPERM || error == -EBADF || error == -ETXTBSY;
}

class Writer {
 public:
  Writer(const OutputTensor& tensor, const TensorPlace& place, const TensorWriting& writing)
      : tensor_(tensor), place_(place), writing_(writing) {}

  absl::StatusOr<TensorOutcome> Run() {
    if (tensor_.source->bytes > 0 || tensor_.resized != nullptr) {
      RETURN_IF_ERROR(Write());
    }
    return TensorOutcome{sha256_.FinishHex(), stats_};
  }

 private:
  absl::Status Write();
  absl::Status Copy();
  absl::Status Convert();
  absl::Status MergeBias();
  absl::Status MergeSlice(const PlannedSlice& slice);
  // Streams the rows of `matrix`, which begin at `first_row` of the tensor, through `merge`.
  absl::Status Stream(WeightMerge merge, int64_t first_row, const WeightMatrix& matrix);
  absl::StatusOr<MatrixView> Read(int64_t first_row, int64_t rows, int64_t cols);
  absl::Status Append(std::span<const std::byte> bytes);
  void Wrote(int64_t bytes);

  const OutputTensor& tensor_;
  const TensorPlace& place_;
  const TensorWriting& writing_;
  Sha256 sha256_;
  RoundingStats stats_;
  int64_t written_ = 0;
  AlignedBuffer source_block_;
  AlignedBuffer output_block_;
};

absl::Status Writer::Write() {
  if (!tensor_.bias.empty()) return MergeBias();
  if (tensor_.slices.empty()) {
    return tensor_.dtype == tensor_.source->dtype ? Copy() : Convert();
  }
  for (const PlannedSlice& slice : tensor_.slices) RETURN_IF_ERROR(MergeSlice(slice));
  return absl::OkStatus();
}

absl::Status Writer::Append(std::span<const std::byte> bytes) {
  sha256_.Update(bytes);
  const auto size = static_cast<int64_t>(bytes.size());
  while (!bytes.empty()) {
    const int64_t count = writing_.disk.WriteAt(place_.file, place_.offset + written_, bytes);
    if (count < 0) {
      return Annotate(DiskError(static_cast<int>(-count),
                                fmt::format("cannot write {}", Quoted(place_.file_name))),
                      "file", Printable(place_.file_name));
    }
    written_ += count;
    bytes = bytes.subspan(count);
  }
  Wrote(size);
  return absl::OkStatus();
}

// The last `bytes` up to written_.
void Writer::Wrote(int64_t bytes) {
  writing_.disk.BeginSync(place_.file, place_.offset + written_ - bytes, bytes);
  writing_.wrote(bytes);
}

absl::Status Writer::Copy() {
  const CheckpointTensor& source = *tensor_.source;
  const InputFile& file = writing_.source.files()[source.file];
  bool by_system = true;
  while (written_ < source.bytes) {
    RETURN_IF_ERROR(writing_.cancellation.Check());
    const int64_t begin = written_;
    const int64_t bytes = std::min(kBlockBytes, source.bytes - begin);
    if (static_cast<int64_t>(source_block_.size()) < bytes) source_block_ = AlignedBuffer(bytes);
    const std::span<std::byte> block = source_block_.span().first(bytes);
    RETURN_IF_ERROR(file.ReadAt(source.offset + begin, block));
    int64_t copied = 0;
    while (by_system && copied < bytes) {
      const int64_t count =
          writing_.disk.CopyRange(file.descriptor(), source.offset + begin + copied, place_.file,
                                  place_.offset + begin + copied, bytes - copied);
      by_system = count > 0 || (count < 0 && !CannotCopy(count));
      if (count > 0) copied += count;
      if (count < 0 && by_system) {
        return Annotate(DiskError(static_cast<int>(-count),
                                  fmt::format("cannot write {}", Quoted(place_.file_name))),
                        "file", Printable(place_.file_name));
      }
    }
    if (copied < bytes) {
      RETURN_IF_ERROR(Append(block));  // also what the system began with: the bytes are the same
      continue;
    }
    sha256_.Update(std::as_bytes(block));
    written_ = begin + bytes;
    Wrote(bytes);
  }
  return absl::OkStatus();
}

absl::StatusOr<MatrixView> Writer::Read(int64_t first_row, int64_t rows, int64_t cols) {
  if (tensor_.resized != nullptr) {
    const MatrixView whole = {tensor_.resized->dtype(), tensor_.shape[0], cols,
                              tensor_.resized->bytes().data()};
    return whole.Rows(first_row, rows);
  }
  const DType dtype = tensor_.source->dtype;
  const MatrixView view = {dtype, rows, cols, nullptr};
  if (static_cast<int64_t>(source_block_.size()) < view.bytes()) {
    source_block_ = AlignedBuffer(view.bytes());
  }
  RETURN_IF_ERROR(writing_.source.ReadRows(*tensor_.source, cols, first_row,
                                           source_block_.span().first(view.bytes())));
  return MatrixView{dtype, rows, cols, source_block_.data()};
}

absl::Status Writer::Stream(WeightMerge merge, int64_t first_row, const WeightMatrix& matrix) {
  const int64_t step = BlockRows(matrix.cols * FloatBytes(tensor_.source->dtype));
  for (int64_t row = 0; merge.NeedsNorms() && row < matrix.rows; row += step) {
    ASSIGN_OR_RETURN(const MatrixView block,
                     Read(first_row + row, std::min(step, matrix.rows - row), matrix.cols));
    RETURN_IF_ERROR(merge.AddNorms(writing_.pool, row, block, writing_.cancellation));
  }
  for (int64_t row = 0; row < matrix.rows; row += step) {
    RETURN_IF_ERROR(writing_.cancellation.Check());
    ASSIGN_OR_RETURN(const MatrixView block,
                     Read(first_row + row, std::min(step, matrix.rows - row), matrix.cols));
    MutableMatrixView merged = {tensor_.dtype, block.rows, block.cols, source_block_.data()};
    if (block.data != source_block_.data() || merged.dtype != block.dtype) {
      if (static_cast<int64_t>(output_block_.size()) < merged.bytes()) {
        output_block_ = AlignedBuffer(merged.bytes());
      }
      merged.data = output_block_.data();
    }
    RETURN_IF_ERROR(merge.Merge(writing_.pool, row, block, merged, writing_.cancellation));
    RETURN_IF_ERROR(Append({merged.data, static_cast<size_t>(merged.bytes())}));
  }
  stats_.Add(merge.sums());
  return absl::OkStatus();
}

absl::Status Writer::Convert() {
  // Any matrix will do: of its last dimensions as many as a block holds make up a row.
  const int64_t most = kBlockBytes / FloatBytes(tensor_.source->dtype);
  const Shape& shape = tensor_.shape;
  WeightMatrix matrix{1, 1};
  for (size_t i = shape.size(); i-- > 0;) {
    (matrix.rows == 1 && shape[i] <= most / matrix.cols ? matrix.cols : matrix.rows) *= shape[i];
  }
  MergeOptions options;
  options.allow_non_finite = writing_.allow_non_finite;
  ASSIGN_OR_RETURN(WeightMerge merge,
                   WeightMerge::Create(writing_.kernels, {}, options, matrix.rows, matrix.cols));
  return Stream(std::move(merge), 0, matrix);
}

absl::Status Writer::MergeSlice(const PlannedSlice& slice) {
  absl::StatusOr<MergeInput> input = ReadMergeInput(slice.parts, slice.shape, slice.matrix);
  RETURN_IF_ERROR(input.status());
  input->options.allow_non_finite = writing_.allow_non_finite;
  // What takes the place of another shape is itself what is merged into.
  if (tensor_.resized != nullptr) input->options.replacement.reset();
  ASSIGN_OR_RETURN(WeightMerge merge,
                   WeightMerge::Create(writing_.kernels, input->terms, input->options,
                                       slice.matrix.rows, slice.matrix.cols));
  return Stream(std::move(merge), slice.first_row, slice.matrix);
}

// As a matrix of one row, to which a bias of B's own is a pair of rank one.
absl::Status Writer::MergeBias() {
  const int64_t size = tensor_.shape[0];
  const float one = 1;
  const MatrixView b = {DType::kF32, 1, 1, reinterpret_cast<const std::byte*>(&one)};
  MergeOptions options;
  options.allow_non_finite = writing_.allow_non_finite;
  std::vector<MergeTerm> terms;
  for (const MergePart& part : tensor_.bias) {
    const ModuleExtras& extras = part.extras();
    if (part.info().replaces_bias) {
      options.replacement = {{extras.bias.dtype(), 1, size, extras.bias.bytes().data()}, {}};
    }
    if (!part.info().has_lora_bias) continue;
    const auto* values = reinterpret_cast<const std::byte*>(extras.lora_bias_f32.data());
    terms.push_back({{DType::kF32, 1, size, values}, b, part.weight * part.info().scale});
  }
  ASSIGN_OR_RETURN(WeightMerge merge,
                   WeightMerge::Create(writing_.kernels, terms, options, 1, size));
  return Stream(std::move(merge), 0, {1, size});
}

}  // namespace

absl::StatusOr<TensorOutcome> WriteTensor(const OutputTensor& tensor, const TensorPlace& place,
                                          const TensorWriting& writing) {
  absl::StatusOr<TensorOutcome> outcome = Writer(tensor, place, writing).Run();
  if (outcome.ok()) return outcome;
  return Annotate(outcome.status(), "tensor", Printable(tensor.name));
}

}  // namespace adapterd
