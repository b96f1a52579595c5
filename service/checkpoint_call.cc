#include "service/checkpoint_call.h"

#include <fmt/format.h>

#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/adapter_refs.h"
#include "service/field_error.h"
#include "service/merge_stats.h"
#include "service/tensor_convert.h"

namespace adapterd {
namespace {

using Call = StreamCall<v1::MergeCheckpointResponse>;

// One of the merges that may run.
class Slot {
 public:
  static absl::StatusOr<std::shared_ptr<Slot>> Take(CheckpointPlane& plane) {
    auto slot = std::shared_ptr<Slot>(new Slot(plane));
    if (slot->number_ <= kMaxCheckpointMerges) return slot;
    return Error(Reason::kOverloaded,
                 fmt::format("{} checkpoints are being merged, which is all that may at once",
                             kMaxCheckpointMerges));
  }
  ~Slot() { --plane_.running; }

 private:
  explicit Slot(CheckpointPlane& plane) : plane_(plane), number_(++plane.running) {}

  CheckpointPlane& plane_;
  const int number_;
};

// A merge that waits for its adapters. `merge` lacks their handles until then.
struct Job {
  CheckpointMergeRequest merge;
  AdapterRefs refs;
  std::shared_ptr<Slot> slot;
};

absl::StatusOr<Job> ReadRequest(CheckpointPlane& plane, const v1::MergeCheckpointRequest& request) {
  Job job;
  job.merge.source = request.source();
  job.merge.output = request.output();
  if (request.source().empty()) return FieldError("source", "a folder", "");
  if (request.output().empty()) return FieldError("output", "a folder", "");
  if (request.dtype() != v1::DATA_TYPE_UNSPECIFIED) {
    ASSIGN_OR_RETURN(job.merge.dtype, FloatTypeFromProto(request.dtype(), "dtype"));
  }
  if (request.max_shard_bytes() < 0) {
    return FieldError("max_shard_bytes", "0 or more", std::to_string(request.max_shard_bytes()));
  }
  job.merge.max_shard_bytes = request.max_shard_bytes();
  job.merge.allow_unmatched = request.allow_unmatched();
  job.merge.allow_non_finite = request.allow_non_finite();
  if (request.adapters().empty()) return FieldError("adapters", "at least one", "none");
  for (int i = 0; i < request.adapters_size(); ++i) {
    const std::string field = fmt::format("adapters[{}]", i);
    ASSIGN_OR_RETURN(const AdapterRefs::Use use, job.refs.Add(request.adapters(i), field));
    const std::string& name = job.refs.refs()[use.ref].name;
    for (const CheckpointAdapter& other : job.merge.adapters) {
      if (other.name == name) return FieldError(field, "each adapter once", name + " twice");
    }
    job.merge.adapters.push_back({name, use.weight, nullptr});
  }
  ASSIGN_OR_RETURN(job.slot, Slot::Take(plane));
  return job;
}

void FillResult(const CheckpointMergeRequest& request, const CheckpointMergeResult& result,
                v1::MergeCheckpointResult& out) {
  out.set_output(request.output);
  for (const std::string& file : result.files) out.add_files(file);
  out.set_merged_tensors(result.merged_tensors);
  out.set_copied_tensors(result.copied_tensors);
  for (const std::string& path : result.unmatched) out.add_unmatched_modules(path);
  out.set_digest(result.digest);
  FillStats(result.stats, *out.mutable_stats());
}

void FillProgress(const CheckpointProgress& progress, v1::MergeCheckpointResponse& out) {
  out.set_phase(std::string(progress.phase));
  out.set_tensors_done(progress.tensors_done);
  out.set_tensors_total(progress.tensors_total);
  out.set_bytes_done(progress.bytes_done);
  out.set_bytes_total(progress.bytes_total);
  out.set_current_tensor(std::string(progress.current_tensor));
}

absl::Status RunMerge(CheckpointPlane& plane, Call& call, const CheckpointMergeRequest& request) {
  const auto report = [&](const CheckpointProgress& progress) {
    v1::MergeCheckpointResponse response;
    FillProgress(progress, response);
    call.Offer(response);
  };
  ASSIGN_OR_RETURN(const CheckpointMergeResult result,
                   MergeCheckpoint(plane.places, request, report, call.cancellation()));
  plane.environment.metrics.MergedBytes(result.bytes);
  const int64_t tensors = result.merged_tensors + result.copied_tensors;
  v1::MergeCheckpointResponse response;
  FillProgress({"done", tensors, tensors, result.bytes, result.bytes, ""}, response);
  FillResult(request, result, *response.mutable_result());
  return call.Write(response);
}

}  // namespace

std::shared_ptr<Call> StartCheckpointMerge(CheckpointPlane& plane, RpcMetrics& metrics,
                                           grpc::CallbackServerContext* context,
                                           const v1::MergeCheckpointRequest& request) {
  auto call = Call::Start(plane.environment, metrics, Plane::kControl, context, request);
  if (call->answered()) return call;
  absl::StatusOr<Job> read = ReadRequest(plane, request);
  if (!read.ok()) {
    call->Run([&] { return read.status(); });
    return call;
  }
  std::vector<AdapterRef> refs = read->refs.refs();
  auto ticket = plane.registry.Acquire(
      std::move(refs), /*skip_disabled=*/false,
      [&plane, call,
       job = *std::move(read)](absl::StatusOr<std::vector<AdapterHandle>> handles) mutable {
        plane.drivers.Submit(
            [&plane, call, job = std::move(job), handles = std::move(handles)]() mutable {
              call->Run([&plane, &call, job = std::move(job),
                         handles = std::move(handles)]() mutable -> absl::Status {
                RETURN_IF_ERROR(handles.status());
                for (size_t i = 0; i < handles->size(); ++i) {
                  job.merge.adapters[i].handle = &(*handles)[i];
                }
                return RunMerge(plane, *call, job.merge);
              });
            });
      });
  call->WhenCancelled([&plane, ticket] { plane.registry.Cancel(ticket); });
  return call;
}

}  // namespace adapterd
