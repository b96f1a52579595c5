// adapterd_health: exit code 0 when the server at ADDRESS (default 127.0.0.1:50051) serves SERVICE
// (default: the whole process). For container health checks, which bring no gRPC client.
#include <fmt/format.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <CLI/CLI.hpp>
#include <chrono>

#include "service/health.pb.h"
#include "service/probe_client.h"

namespace {

constexpr auto kTimeout = std::chrono::seconds(3);

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Asks whether a server serves.");
  adapterd::ProbeOptions options;
  adapterd::AddConnectionFlags(app, options);
  std::string service;
  app.add_option("service", service, "Name of a gRPC service; the whole process without it");
  CLI11_PARSE(app, argc, argv);
  const auto channel = adapterd::OpenChannel(options);
  if (!channel.ok()) {
    fmt::print(stderr, "{}\n", std::string(channel.status().message()));
    return 2;
  }
  adapterd::health::HealthCheckRequest request;
  request.set_service(service);
  grpc::TemplatedGenericStub<adapterd::health::HealthCheckRequest,
                             adapterd::health::HealthCheckResponse>
      stub(*channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kTimeout);
  grpc::CompletionQueue queue;
  auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", request, &queue);
  call->StartCall();
  adapterd::health::HealthCheckResponse response;
  grpc::Status status;
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  const bool serving =
      ok && status.ok() && response.status() == adapterd::health::HealthCheckResponse::SERVING;
  fmt::print("{}\n", serving ? "serving" : status.ok() ? "not serving" : status.error_message());
  return serving ? 0 : 1;
}
