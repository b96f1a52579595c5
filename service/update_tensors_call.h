// An UpdateAdapterTensors in progress.
#ifndef ADAPTERD_SERVICE_UPDATE_TENSORS_CALL_H_
#define ADAPTERD_SERVICE_UPDATE_TENSORS_CALL_H_

#include <grpcpp/grpcpp.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "adapterd/v1/adapter_creation.pb.h"
#include "core/adapter/tensor_role.h"
#include "core/catalog/content_store.h"
#include "core/registry/adapter_handle.h"
#include "core/registry/registry_types.h"
#include "service/adapter_service.h"
#include "service/call_record.h"
#include "service/tensor_convert.h"

namespace adapterd {

// Collects new factors, each checked against the adapter as it comes, and publishes them together
// with the factors that stay as a new revision. Holds at most one set of the adapter's factors: no
// module comes twice. When another update of the adapter was faster and the client gave no etag,
// the new factors are put on top of that one's: updates of different modules all count.
//
// Shared by gRPC (until OnDone) and by the step that goes on. Threads: one step at a time, on the
// I/O pool.
class UpdateTensorsCall final : public grpc::ServerReadReactor<v1::UpdateAdapterTensorsRequest>,
                                public std::enable_shared_from_this<UpdateTensorsCall> {
 public:
  // `plane` and `response` outlive the call. One that is not admitted is answered at once.
  static std::shared_ptr<UpdateTensorsCall> Start(ControlPlane& plane, RpcMetrics& metrics,
                                                  grpc::CallbackServerContext* context,
                                                  v1::UpdateAdapterTensorsResponse* response);

 private:
  // New factors of one module, and the message that they lie in. Without a value a factor stays.
  struct Update {
    std::unique_ptr<v1::UpdatedTensors> message;
    std::optional<FloatTensor> lora_a;
    std::optional<FloatTensor> lora_b;

    const std::optional<FloatTensor>& Factor(TensorRole role) const {
      return role == TensorRole::kLoraA ? lora_a : lora_b;
    }
  };

  UpdateTensorsCall(ControlPlane& plane, RpcMetrics& metrics, grpc::CallbackServerContext* context,
                    v1::UpdateAdapterTensorsResponse* response);
  void OnReadDone(bool ok) override;
  void OnCancel() override { record_.OnCancel(); }
  void OnDone() override;

  // The steps. Each leads to another one, to the next message or to End.
  void TakeMessage();
  void Acquire();
  void Acquired(absl::StatusOr<std::vector<AdapterHandle>> handles);
  void Publish();
  void Loaded(const absl::StatusOr<LoadResult>& result);
  void End(const absl::Status& status);

  absl::Status Take();
  absl::Status TakeStart(const v1::UpdateTensorsStart& start);
  absl::Status TakeTensors(std::unique_ptr<v1::UpdatedTensors> tensors);
  absl::Status UseAdapter(absl::StatusOr<std::vector<AdapterHandle>> handles);
  absl::Status CheckFits(const Update& update) const;
  // Of the new revision, in the form of ModuleTensors.
  Tensor NewTensor(size_t module, TensorRole role) const;
  absl::StatusOr<StoredContent> Store();

  ControlPlane& plane_;
  v1::UpdateAdapterTensorsResponse* const response_;
  CallRecord record_;
  std::shared_ptr<UpdateTensorsCall> self_;  // gRPC's share

  // Of the step that goes on.
  v1::UpdateAdapterTensorsRequest message_;
  LoadRequest load_;       // without a name until `start` has come
  AdapterHandle adapter_;  // what the new revision is made of; empty while it is loaded
  bool all_here_ = false;  // the client has closed its side
  std::map<std::string, Update> updates_;  // by path
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_UPDATE_TENSORS_CALL_H_
