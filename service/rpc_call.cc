#include "service/rpc_call.h"

#include <utility>

namespace adapterd {

std::shared_ptr<RpcCall> RpcCall::Start(RpcEnvironment& environment, RpcMetrics& metrics,
                                        Plane plane, grpc::CallbackServerContext* context,
                                        int64_t request_bytes) {
  std::shared_ptr<RpcCall> call(new RpcCall(environment, metrics, plane, context, request_bytes));
  call->self_ = call;
  call->Admit();
  return call;
}

std::shared_ptr<RpcCall> RpcCall::Start(RpcEnvironment& environment, RpcMetrics& metrics,
                                        Plane plane, grpc::CallbackServerContext* context,
                                        const google::protobuf::Message& request) {
  std::shared_ptr<RpcCall> call(new RpcCall(environment, metrics, plane, context,
                                            static_cast<int64_t>(request.ByteSizeLong())));
  call->self_ = call;
  call->record_.AuditRequest(request);
  call->Admit();
  return call;
}

void RpcCall::Admit() {
  const absl::Status status = record_.Admit();
  if (!status.ok() && Claim()) Answer(status);
}

void RpcCall::Run(const google::protobuf::Message& response,
                  absl::AnyInvocable<absl::Status()> work) {
  if (!Claim()) return;
  const absl::Status status = GuardedCall([&] { return work(); });
  work = nullptr;
  Answer(status, &response);
}

void RpcCall::Answer(const absl::Status& status, const google::protobuf::Message* response) {
  const bool sized = status.ok() && response != nullptr;
  if (sized) record_.AuditResponse(*response);
  Answer(status, sized ? static_cast<int64_t>(response->ByteSizeLong()) : 0);
}

void RpcCall::Answer(const absl::Status& status, int64_t response_bytes) {
  Finish(record_.End(status, response_bytes));
}

void RpcCall::OnDone() {
  record_.OnDone();
  // Leaving open_calls may let the environment be destroyed, so it is the last that happens; the
  // share that goes with `self` may be the last.
  const std::shared_ptr<RpcCall> self = std::move(self_);
  record_.Left();
}

}  // namespace adapterd
