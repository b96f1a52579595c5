#include "core/merge/checkpoint_merge.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/status_macros.h"
#include "core/merge/carried_files.h"
#include "core/merge/certificate.h"
#include "core/merge/checkpoint_layout.h"
#include "core/merge/output_folder.h"
#include "core/merge/tensor_merge.h"

namespace adapterd {
namespace {

constexpr absl::Duration kReportInterval = absl::Milliseconds(100);

// Counts what all threads have done. Any thread.
class Progress {
 public:
  explicit Progress(const ReportProgress& report) : report_(report) {}

  void Begin(std::string_view phase) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    phase_ = phase;
    Report("");
  }
  void SetTotals(int64_t tensors, int64_t bytes) {
    tensors_total_ = tensors;
    bytes_total_ = bytes;
  }
  void TensorDone() { ++tensors_done_; }
  void Wrote(int64_t bytes, std::string_view tensor) ABSL_LOCKS_EXCLUDED(mutex_) {
    bytes_done_ += bytes;
    if (!mutex_.TryLock()) return;  // somebody reports at this instant
    if (absl::Now() - reported_ >= kReportInterval) Report(tensor);
    mutex_.Unlock();
  }

 private:
  void Report(std::string_view tensor) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    reported_ = absl::Now();
    report_({phase_, tensors_done_, tensors_total_, bytes_done_, bytes_total_, tensor});
  }

  const ReportProgress& report_;
  std::atomic<int64_t> tensors_done_{0};
  std::atomic<int64_t> tensors_total_{0};
  std::atomic<int64_t> bytes_done_{0};
  std::atomic<int64_t> bytes_total_{0};
  absl::Mutex mutex_;
  std::string_view phase_ ABSL_GUARDED_BY(mutex_);
  absl::Time reported_ ABSL_GUARDED_BY(mutex_);
};

// As the request calls it.
absl::Status ForSource(const absl::Status& status) { return Annotate(status, "field", "source"); }

absl::StatusOr<std::unique_ptr<const BaseModel>> OpenSource(const SourceRoots& roots,
                                                            const std::string& source) {
  ProblemList problems;
  std::unique_ptr<const BaseModel> base = BaseModel::Open(roots, source, problems, "source");
  if (base == nullptr) return problems.ToStatus();
  return base;
}

// One merge, step by step.
class CheckpointMerge {
 public:
  CheckpointMerge(const CheckpointMergePlaces& places, const CheckpointMergeRequest& request,
                  const ReportProgress& report, const Cancellation& cancellation)
      : places_(places), request_(request), cancellation_(cancellation), progress_(report) {}

  absl::StatusOr<CheckpointMergeResult> Run();

 private:
  absl::Status Plan();
  absl::Status ReadCarried(const SourceFolder& folder);
  absl::Status MakeFiles();
  absl::Status MergeTensors();
  absl::Status SyncFiles();
  absl::Status WriteSmallFiles();
  CheckpointMergeResult Result() const;

  const CheckpointMergePlaces& places_;
  const CheckpointMergeRequest& request_;
  const Cancellation& cancellation_;
  Progress progress_;
  std::unique_ptr<const BaseModel> base_;
  std::optional<std::string> config_;  // as the output has it
  std::vector<std::pair<std::string, InputFile>> carried_;
  CheckpointPlan plan_;
  CheckpointLayout layout_;
  std::unique_ptr<OutputFolder> output_;
  std::vector<ScopedFd> files_;  // the layout's
  std::vector<TensorOutcome> outcomes_;
};

absl::Status CheckpointMerge::Plan() {
  ASSIGN_OR_RETURN(base_, OpenSource(places_.models, request_.source));
  absl::StatusOr<SourceFolder> folder = places_.models.OpenFolder(request_.source);
  if (!folder.ok()) return ForSource(folder.status());
  RETURN_IF_ERROR(ReadCarried(*folder));
  ASSIGN_OR_RETURN(plan_, PlanCheckpoint(*base_, request_));
  if (config_) {
    ASSIGN_OR_RETURN(config_, ChangedConfig(*config_, plan_, request_.dtype));
  }
  ASSIGN_OR_RETURN(layout_, LayOutCheckpoint(plan_, base_->checkpoint(), request_.max_shard_bytes));
  ASSIGN_OR_RETURN(output_, OutputFolder::Begin(places_.outputs, request_.output, places_.models,
                                                request_.source, places_.disk));
  return absl::OkStatus();
}

absl::Status CheckpointMerge::ReadCarried(const SourceFolder& folder) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, CarriedFiles(folder));
  for (const std::string& name : names) {
    absl::StatusOr<InputFile> file = folder.OpenFile(name);
    if (!file.ok() && GetErrorDetails(file.status()).reason == Reason::kSourceNotFound) continue;
    if (!file.ok()) return ForSource(file.status());
    if (name == kBaseConfigFileName) {
      ASSIGN_OR_RETURN(config_, ReadSmallFile(*file, kMaxBaseConfigBytes));
      RETURN_IF_ERROR(CheckNotQuantised(*config_));
      continue;
    }
    carried_.emplace_back(name, *std::move(file));
  }
  return absl::OkStatus();
}

absl::Status CheckpointMerge::MakeFiles() {
  for (const PlannedFile& file : layout_.files) {
    ASSIGN_OR_RETURN(ScopedFd made, output_->Create(file.name, file.bytes));
    const auto start = std::as_bytes(std::span<const char>(file.start));
    for (int64_t done = 0; done < static_cast<int64_t>(start.size());) {
      const int64_t count = output_->disk().WriteAt(made.get(), done, start.subspan(done));
      if (count < 0) return DiskError(static_cast<int>(-count), "cannot write " + file.name);
      done += count;
    }
    files_.push_back(std::move(made));
  }
  return absl::OkStatus();
}

absl::Status CheckpointMerge::MergeTensors() {
  const auto count = static_cast<int64_t>(plan_.tensors.size());
  progress_.SetTotals(count, layout_.bytes);
  progress_.Begin("merging");
  outcomes_.resize(count);
  return ParallelFor(places_.pool, count, cancellation_, [&](int64_t position) -> absl::Status {
    const size_t i = layout_.order[position];
    const CheckpointLayout::Place& place = layout_.places[i];
    const std::string& name = plan_.tensors[i].name;
    const TensorWriting writing{base_->checkpoint(),
                                places_.kernels,
                                places_.pool,
                                output_->disk(),
                                cancellation_,
                                request_.allow_non_finite,
                                [&](int64_t bytes) { progress_.Wrote(bytes, name); }};
    ASSIGN_OR_RETURN(outcomes_[i], WriteTensor(plan_.tensors[i],
                                               {files_[place.file].get(), place.offset,
                                                layout_.files[place.file].name},
                                               writing));
    progress_.TensorDone();
    return absl::OkStatus();
  });
}

absl::Status CheckpointMerge::WriteSmallFiles() {
  if (!layout_.index.empty()) {
    RETURN_IF_ERROR(output_->WriteFile(std::string(kCheckpointIndexName), layout_.index));
  }
  if (config_) RETURN_IF_ERROR(output_->WriteFile(std::string(kBaseConfigFileName), *config_));
  for (const auto& [name, file] : carried_) {
    RETURN_IF_ERROR(output_->CopyFile(name, file, cancellation_));
    RETURN_IF_ERROR(ForSource(file.CheckUnchanged()));
  }
  return output_->WriteFile(std::string(kCertificateName),
                            Certificate(request_, base_->fingerprint(), plan_, outcomes_));
}

absl::Status CheckpointMerge::SyncFiles() {
  progress_.Begin("syncing");
  return ParallelFor(places_.pool, static_cast<int64_t>(files_.size()), cancellation_,
                     [&](int64_t i) { return output_->Sync(files_[i], layout_.files[i].name); });
}

CheckpointMergeResult CheckpointMerge::Result() const {
  CheckpointMergeResult result;
  result.files = output_->files();
  result.merged_tensors = std::ranges::count_if(plan_.tensors, &OutputTensor::merged);
  result.copied_tensors = static_cast<int64_t>(plan_.tensors.size()) - result.merged_tensors;
  result.bytes = layout_.bytes;
  result.unmatched = plan_.unmatched;
  result.digest = CheckpointDigest(plan_, outcomes_);
  result.stats = Summarise(TotalStats(plan_, outcomes_));
  return result;
}

absl::StatusOr<CheckpointMergeResult> CheckpointMerge::Run() {
  progress_.Begin("planning");
  RETURN_IF_ERROR(Plan());
  RETURN_IF_ERROR(MakeFiles());
  RETURN_IF_ERROR(MergeTensors());
  RETURN_IF_ERROR(WriteSmallFiles());
  RETURN_IF_ERROR(SyncFiles());
  RETURN_IF_ERROR(ForSource(base_->CheckUnchanged()));
  RETURN_IF_ERROR(cancellation_.Check());
  RETURN_IF_ERROR(output_->Commit());
  return Result();
}

}  // namespace

absl::StatusOr<CheckpointMergeResult> MergeCheckpoint(const CheckpointMergePlaces& places,
                                                      const CheckpointMergeRequest& request,
                                                      const ReportProgress& report,
                                                      const Cancellation& cancellation) {
  return CheckpointMerge(places, request, report, cancellation).Run();
}

}  // namespace adapterd
