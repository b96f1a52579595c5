#include "bench/fleet_client.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <utility>

#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr std::chrono::seconds kDeadline{60};
// No adapter is called so: a listing of them is its summary alone.
constexpr char kNobody[] = "nobody";

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection that no other one shares
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

template <typename Request, typename Response>
absl::StatusOr<Response> Call(v1::AdapterService::Stub& stub, const Request& request,
                              grpc::Status (v1::AdapterService::Stub::*method)(grpc::ClientContext*,
                                                                               const Request&,
                                                                               Response*)) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kDeadline);
  context.set_wait_for_ready(true);
  Response response;
  const grpc::Status status = (stub.*method)(&context, request, &response);
  if (status.ok()) return response;
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace

FleetClient::FleetClient(const std::string& address)
    : stub_(v1::AdapterService::NewStub(Connect(address))) {}

absl::Status FleetClient::Load(const std::string& name, const std::string& source, bool replace) {
  v1::LoadAdapterRequest request;
  request.set_name(name);
  request.set_source(source);
  request.set_replace(replace);
  return Call(*stub_, request, &v1::AdapterService::Stub::LoadAdapter).status();
}

absl::Status FleetClient::Unload(const std::string& name) {
  v1::UnloadAdapterRequest request;
  request.set_name(name);
  return Call(*stub_, request, &v1::AdapterService::Stub::UnloadAdapter).status();
}

absl::StatusOr<v1::ListAdaptersResponse> FleetClient::Page(int64_t page_size,
                                                           const std::string& token) {
  v1::ListAdaptersRequest request;
  request.set_page_size(page_size);
  request.set_page_token(token);
  return Call(*stub_, request, &v1::AdapterService::Stub::ListAdapters);
}

absl::StatusOr<FleetState> FleetClient::State() {
  v1::ListAdaptersRequest request;
  request.set_name_prefix(kNobody);
  ASSIGN_OR_RETURN(const v1::ListAdaptersResponse reply,
                   Call(*stub_, request, &v1::AdapterService::Stub::ListAdapters));
  const v1::AdapterSummary& summary = reply.summary();
  return FleetState{summary.adapter_count(), summary.resident_count(), summary.memory_bytes(),
                    summary.memory_budget_bytes(), reply.sequence()};
}

}  // namespace adapterd::bench
