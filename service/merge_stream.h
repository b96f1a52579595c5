// MergeStream: one weight, merged run of rows by run of rows.
#ifndef ADAPTERD_SERVICE_MERGE_STREAM_H_
#define ADAPTERD_SERVICE_MERGE_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "adapterd/v1/merge_service.pb.h"
#include "core/registry/module_merge.h"
#include "service/adapter_refs.h"
#include "service/data_plane.h"

namespace adapterd {

// Each holds two messages at most, and handles on its adapters for as long as its client likes.
inline constexpr int kMaxMergeStreams = 256;

// One stream. What it does is one chain: read, work, write, read again; the next rows are not read
// before the transport has taken the last ones' reply. No thread waits, and no two run it at once.
// Shared by gRPC (until OnDone) and by its jobs.
class MergeStreamCall final
    : public grpc::ServerBidiReactor<v1::MergeStreamRequest, v1::MergeStreamResponse>,
      public std::enable_shared_from_this<MergeStreamCall> {
 public:
  // Ends at once with OVERLOADED or DRAINING when it cannot begin. `open` counts the streams.
  static std::shared_ptr<MergeStreamCall> Start(DataPlane& plane, std::atomic<int>& open,
                                                RpcMetrics& metrics,
                                                grpc::CallbackServerContext* context);

 private:
  MergeStreamCall(DataPlane& plane, std::atomic<int>& open, RpcMetrics& metrics,
                  grpc::CallbackServerContext* context);
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override { record_.OnCancel(); }
  void OnDone() override;

  // Runs `step` on a worker; an error ends the stream.
  void Enqueue(absl::AnyInvocable<absl::Status()> step);
  void End(const absl::Status& status);
  // What was read. Each starts the next link of the chain when it is OK.
  absl::Status TakeMessage();
  absl::Status TakeStart();
  absl::Status TakeRows();
  absl::Status TakeEnd();

  absl::Status Begin(std::vector<AdapterHandle> handles);
  absl::StatusOr<WeightMerge> MakeMerge(const std::vector<MergePart>& parts);
  void Write();

  DataPlane& plane_;
  std::atomic<int>& open_;
  const int number_;  // of this among those that are open
  CallRecord record_;
  std::shared_ptr<MergeStreamCall> self_;  // gRPC's share

  v1::MergeStreamRequest request_;
  v1::MergeStreamResponse response_;
  Admission::Ticket admitted_;  // for the message that is worked on
  int64_t written_bytes_ = 0;
  bool last_ = false;  // the last message is on its way

  // Of the weight, once started.
  AdapterRefs refs_;
  std::vector<AdapterRefs::Use> uses_;
  ModuleSelector selector_;
  DType dtype_ = DType::kF32;
  Shape shape_;
  WeightMatrix matrix_;
  bool started_ = false;
  std::vector<AdapterHandle> handles_;
  std::vector<bool> used_;  // of refs_
  MergeInput input_;
  std::optional<WeightMerge> merge_;
  int64_t next_row_ = 0;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_MERGE_STREAM_H_
