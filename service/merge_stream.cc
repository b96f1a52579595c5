#include "service/merge_stream.h"

#include <fmt/format.h>

#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/adapter_convert.h"
#include "service/field_error.h"
#include "service/merge_parts.h"
#include "service/merge_plan.h"
#include "service/merge_stats.h"
#include "service/tensor_convert.h"

namespace adapterd {
namespace {

// Its norms run down the columns of a weight of which there are only some rows.
absl::Status NeedsBase(const MergePart& part) {
  return About(Error(Reason::kBaseRequired,
                     fmt::format("adapter \"{}\" is DoRA on module {}: rows of an [in, out] weight "
                                 "cannot be merged without the norms of its columns, which are "
                                 "known when the adapter is loaded with base_checkpoint",
                                 part.name, part.info().path)),
               part);
}

absl::Status ChangesBias(const MergePart& part) {
  return About(Error(Reason::kUnsupportedAdapter,
                     fmt::format("adapter \"{}\" changes the bias of module {}, which this stream "
                                 "does not carry: use Merge or MergeCheckpoint",
                                 part.name, part.info().path)),
               part);
}

}  // namespace

MergeStreamCall::MergeStreamCall(DataPlane& plane, std::atomic<int>& open, RpcMetrics& metrics,
                                 grpc::CallbackServerContext* context)
    : plane_(plane),
      open_(open),
      number_(++open),
      record_(plane.environment, metrics, Plane::kData, context, 0) {}

std::shared_ptr<MergeStreamCall> MergeStreamCall::Start(DataPlane& plane, std::atomic<int>& open,
                                                        RpcMetrics& metrics,
                                                        grpc::CallbackServerContext* context) {
  std::shared_ptr<MergeStreamCall> call(new MergeStreamCall(plane, open, metrics, context));
  call->self_ = call;
  absl::Status status = call->record_.Admit();
  if (status.ok() && call->number_ > kMaxMergeStreams) {
    status = Error(Reason::kOverloaded,
                   fmt::format("{} weights are being merged by stream, which is all that may at "
                               "once",
                               kMaxMergeStreams));
  }
  if (status.ok()) {
    call->StartRead(&call->request_);
  } else {
    call->End(status);
  }
  return call;
}

void MergeStreamCall::End(const absl::Status& status) {
  merge_.reset();
  input_ = {};
  handles_.clear();
  admitted_ = {};
  Finish(record_.End(status, written_bytes_));
}

void MergeStreamCall::Enqueue(absl::AnyInvocable<absl::Status()> step) {
  plane_.workers.Submit([self = shared_from_this(), step = std::move(step)]() mutable {
    absl::Status status = self->record_.cancellation().Check();
    if (status.ok()) status = GuardedCall([&] { return step(); });
    step = nullptr;
    if (!status.ok()) self->End(status);
  });
}

void MergeStreamCall::OnReadDone(bool ok) {
  if (const absl::Status wanted = record_.cancellation().Check(); !wanted.ok()) return End(wanted);
  if (ok) {
    Enqueue([this] { return TakeMessage(); });
  } else {
    Enqueue([this] { return TakeEnd(); });
  }
}

void MergeStreamCall::OnWriteDone(bool ok) {
  admitted_ = {};
  if (!ok) return End(absl::CancelledError("the caller went away"));
  if (last_) return End(absl::OkStatus());
  StartRead(&request_);
}

void MergeStreamCall::OnDone() {
  const std::shared_ptr<MergeStreamCall> self = std::move(self_);
  --open_;
  record_.OnDone();
  record_.Left();
}

absl::Status MergeStreamCall::TakeMessage() {
  const auto bytes = static_cast<int64_t>(request_.ByteSizeLong());
  RETURN_IF_ERROR(record_.AdmitMessage(bytes));
  ASSIGN_OR_RETURN(admitted_, plane_.admission.Admit(bytes));
  switch (request_.content_case()) {
    case v1::MergeStreamRequest::kStart:
      return TakeStart();
    case v1::MergeStreamRequest::kRows:
      return TakeRows();
    default:
      return FieldError("content", "start or rows", "neither");
  }
}

absl::Status MergeStreamCall::TakeStart() {
  if (started_) return FieldError("start", "to come once", "a second one");
  started_ = true;
  const v1::MergeStreamStart& start = request_.start();
  ASSIGN_OR_RETURN(dtype_, FloatTypeFromProto(start.dtype(), "start.dtype"));
  ASSIGN_OR_RETURN(matrix_.layout, LayoutFromProto(start.weight_layout(), "start.weight_layout"));
  shape_.assign(start.shape().begin(), start.shape().end());
  if (shape_.empty()) return ShapeError("start.shape", "at least one dimension", shape_);
  if (!ByteCount(dtype_, shape_).ok()) return ShapeError("start.shape", "a size", shape_);
  ASSIGN_OR_RETURN(selector_, SelectorFromProto(start.module(), "start.module"));
  if (start.adapters().empty()) return FieldError("start.adapters", "at least one", "none");
  for (int i = 0; i < start.adapters_size(); ++i) {
    ASSIGN_OR_RETURN(const AdapterRefs::Use use,
                     refs_.Add(start.adapters(i), fmt::format("start.adapters[{}]", i)));
    uses_.push_back(use);
  }
  RETURN_IF_ERROR(plane_.registry.ChargeTenants(refs_.refs()));
  auto ticket = plane_.registry.Acquire(
      refs_.refs(), /*skip_disabled=*/false,
      [self = shared_from_this()](absl::StatusOr<std::vector<AdapterHandle>> handles) {
        self->Enqueue([self = self.get(), handles = std::move(handles)]() mutable -> absl::Status {
          RETURN_IF_ERROR(handles.status());
          return self->Begin(*std::move(handles));
        });
      });
  record_.WhenCancelled([&registry = plane_.registry, ticket] { registry.Cancel(ticket); });
  return absl::OkStatus();
}

absl::Status MergeStreamCall::Begin(std::vector<AdapterHandle> handles) {
  handles_ = std::move(handles);
  used_.assign(handles_.size(), false);
  ASSIGN_OR_RETURN(
      const std::vector<MergePart> parts,
      ResolveMerge(refs_, uses_, selector_, request_.start().skip_untargeted(), handles_, used_));
  ASSIGN_OR_RETURN(merge_, MakeMerge(parts));
  admitted_ = {};
  StartRead(&request_);
  return absl::OkStatus();
}

absl::StatusOr<WeightMerge> MergeStreamCall::MakeMerge(const std::vector<MergePart>& parts) {
  const WeightLayout layout = matrix_.layout;
  matrix_.rows = shape_[0];  // what nobody targets stays as it is, whatever its shape
  matrix_.cols = 1;
  for (size_t i = 1; i < shape_.size(); ++i) matrix_.cols *= shape_[i];
  for (const MergePart& part : parts) {
    if (part.ChangesBias()) return ChangesBias(part);
    absl::StatusOr<WeightMatrix> matrix = MatrixOf(part, shape_, layout);
    if (!matrix.ok()) return Annotate(matrix.status(), "field", "start.shape");
    matrix_ = *matrix;
  }
  ASSIGN_OR_RETURN(input_, ReadMergeInput(parts, shape_, matrix_));
  input_.options.allow_non_finite = request_.start().allow_non_finite();
  if (input_.options.magnitude != nullptr && matrix_.layout == WeightLayout::kInOut) {
    const std::optional<DoraVectors>& dora = parts[0].extras().dora;
    if (!dora) return NeedsBase(parts[0]);
    input_.options.gains = dora->gain.data();
  }
  return WeightMerge::Create(plane_.kernels, input_.terms, input_.options, matrix_.rows,
                             matrix_.cols);
}

absl::Status MergeStreamCall::TakeRows() {
  if (!started_) return FieldError("content", "start in the first message", "rows");
  v1::WeightRows& rows = *request_.mutable_rows();
  if (rows.first_row() != next_row_) {
    return FieldError("rows.first_row", std::to_string(next_row_),
                      std::to_string(rows.first_row()));
  }
  const MatrixView row = {dtype_, 1, matrix_.cols, nullptr};
  const auto bytes = static_cast<int64_t>(rows.data().size());
  const int64_t count = row.bytes() == 0 ? 0 : bytes / row.bytes();
  if (bytes == 0 || count * row.bytes() != bytes || count > matrix_.rows - next_row_) {
    return FieldError(
        "rows.data", fmt::format("1 to {} rows of {} bytes", matrix_.rows - next_row_, row.bytes()),
        fmt::format("{} bytes", bytes));
  }
  auto* data = reinterpret_cast<std::byte*>(rows.mutable_data()->data());
  const absl::Time start = absl::Now();
  const absl::Status merged =
      merge_->Merge(plane_.workers, next_row_, {dtype_, count, matrix_.cols, data},
                    {dtype_, count, matrix_.cols, data}, record_.cancellation());
  if (!merged.ok()) return AboutMerge(merged, refs_, selector_);
  plane_.environment.metrics.Merge(absl::Now() - start, bytes);
  response_.Clear();
  response_.mutable_rows()->set_first_row(next_row_);
  response_.mutable_rows()->mutable_data()->swap(*rows.mutable_data());
  next_row_ += count;
  Write();
  return absl::OkStatus();
}

absl::Status MergeStreamCall::TakeEnd() {
  if (!merge_) return FieldError("content", "start in the first message", "no message");
  if (next_row_ < matrix_.rows) {
    return FieldError("rows", fmt::format("{} rows in all", matrix_.rows),
                      fmt::format("{} before the end", next_row_));
  }
  response_.Clear();
  FillStats(Summarise(merge_->sums()), *response_.mutable_stats());
  AddUses(refs_.refs(), handles_, used_, *response_.mutable_adapters());
  last_ = true;
  Write();
  return absl::OkStatus();
}

void MergeStreamCall::Write() {
  written_bytes_ += static_cast<int64_t>(response_.ByteSizeLong());
  StartWrite(&response_);
}

}  // namespace adapterd
