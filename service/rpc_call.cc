#include "service/rpc_call.h"

#include <utility>

namespace adapterd {

std::shared_ptr<RpcCall> RpcCall::Start(RpcEnvironment& environment, RpcMetrics& metrics,
                                        Plane plane, grpc::CallbackServerContext* context,
                                        const google::protobuf::Message& request) {
  std::shared_ptr<RpcCall> call(new RpcCall(environment, metrics, plane, context,
                                            static_cast<int64_t>(request.ByteSizeLong())));
  call->self_ = call;
  const absl::Status status = call->record_.Admit();
  if (!status.ok() && call->Claim()) call->Answer(status);
  return call;
}

void RpcCall::Run(const google::protobuf::Message& response,
                  absl::AnyInvocable<absl::Status()> work) {
  if (!Claim()) return;
  const absl::Status status = GuardedCall(work);
  work = nullptr;
  Answer(status, &response);
}

void RpcCall::Answer(const absl::Status& status, const google::protobuf::Message* response) {
  const bool sized = status.ok() && response != nullptr;
  Finish(record_.End(status, sized ? static_cast<int64_t>(response->ByteSizeLong()) : 0));
}

void RpcCall::OnDone() {
  record_.OnDone();
  // Leaving open_calls may let the environment be destroyed, so it is the last that happens; the
  // share that goes with `self` may be the last.
  const std::shared_ptr<RpcCall> self = std::move(self_);
  record_.Left();
}

}  // namespace adapterd
