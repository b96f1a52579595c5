// adapterd_smoke: exit code 0 when the server at ADDRESS (default 127.0.0.1:50051) takes an adapter
// of seven numbers, applies it right, and lets it go. For tests of an installation, which bring no
// gRPC client and no adapter. With an access policy it needs the token, or the certificate, of an
// admin.
#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <random>
#include <string>
#include <vector>

#include "adapterd/v1/adapter_service.grpc.pb.h"
#include "adapterd/v1/projection_service.grpc.pb.h"
#include "service/probe_client.h"

namespace adapterd {
namespace {

constexpr auto kTimeout = std::chrono::seconds(30);
constexpr char kModule[] = "model.layers.0.self_attn.q_proj";

constexpr char kConfig[] = R"({"peft_type": "LORA", "base_model_name_or_path": "smoke",
  "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]})";
// A x = 6, and scale * B (A x) = 2 * B * 6.
const std::vector<float> kA = {1, 0, -1, 2};
const std::vector<float> kB = {1, 0.5, -1};
const std::vector<float> kX = {1, 2, 3, 4};
const std::vector<float> kDelta = {12, 6, -12};

// A safetensors file: the header's length, the header, A and B.
std::string Weights() {
  const std::string prefix = fmt::format("base_model.model.{}", kModule);
  const std::string header =
      fmt::format(R"({{"{0}.lora_A.weight":{{"dtype":"F32","shape":[1,4],"data_offsets":[0,16]}},)"
                  R"("{0}.lora_B.weight":{{"dtype":"F32","shape":[3,1],"data_offsets":[16,28]}}}})",
                  prefix);
  const uint64_t size = header.size();
  std::string file(reinterpret_cast<const char*>(&size), sizeof(size));
  file += header;
  for (const auto* factor : {&kA, &kB}) {
    file.append(reinterpret_cast<const char*>(factor->data()), factor->size() * sizeof(float));
  }
  return file;
}

// One server, as one caller.
class Smoke {
 public:
  Smoke(std::shared_ptr<grpc::Channel> channel, std::string authorization)
      : adapters_(v1::AdapterService::NewStub(channel)),
        projections_(v1::ProjectionService::NewStub(channel)),
        authorization_(std::move(authorization)) {}

  grpc::Status Upload(const std::string& name) {
    grpc::ClientContext context;
    Prepare(context);
    v1::UploadAdapterResponse response;
    const auto writer = adapters_->UploadAdapter(&context, &response);
    v1::UploadAdapterRequest request;
    request.mutable_start()->set_name(name);
    writer->Write(request);
    request.mutable_chunk()->set_file_name("adapter_config.json");
    request.mutable_chunk()->set_data(kConfig);
    writer->Write(request);
    request.mutable_chunk()->set_file_name("adapter_model.safetensors");
    request.mutable_chunk()->set_data(Weights());
    writer->Write(request);
    writer->WritesDone();
    return writer->Finish();  // which also tells why a write did not go through
  }

  grpc::Status Apply(const std::string& name) {
    grpc::ClientContext context;
    Prepare(context);
    v1::ApplyProjectionRequest request;
    request.mutable_adapter()->set_name(name);
    request.add_projections()->mutable_module()->set_path(kModule);
    request.mutable_input()->add_shape(4);
    request.mutable_input()->mutable_f32_values()->Add(kX.begin(), kX.end());
    v1::ApplyProjectionResponse response;
    const grpc::Status status = projections_->ApplyProjection(&context, request, &response);
    if (!status.ok()) return status;
    const auto& values = response.outputs(0).output().f32_values();
    if (std::vector<float>(values.begin(), values.end()) != kDelta) {
      return {grpc::StatusCode::DATA_LOSS, "the projection is wrong"};
    }
    return status;
  }

  grpc::Status Unload(const std::string& name) {
    grpc::ClientContext context;
    Prepare(context);
    v1::UnloadAdapterRequest request;
    request.set_name(name);
    v1::UnloadAdapterResponse response;
    const grpc::Status status = adapters_->UnloadAdapter(&context, request, &response);
    if (status.ok() && !response.freed()) {
      return {grpc::StatusCode::INTERNAL, "the memory of the adapter is not free"};
    }
    return status;
  }

 private:
  void Prepare(grpc::ClientContext& context) const {
    context.set_deadline(std::chrono::system_clock::now() + kTimeout);
    context.set_wait_for_ready(true);
    // Not as call credentials, which gRPC refuses to send in plain text.
    if (!authorization_.empty()) context.AddMetadata("authorization", authorization_);
  }

  std::unique_ptr<v1::AdapterService::Stub> adapters_;
  std::unique_ptr<v1::ProjectionService::Stub> projections_;
  std::string authorization_;
};

int Run(const ProbeOptions& options) {
  const auto channel = OpenChannel(options);
  const auto authorization = ReadAuthorization(options);
  for (const absl::Status& status : {channel.status(), authorization.status()}) {
    if (status.ok()) continue;
    fmt::print(stderr, "{}\n", std::string(status.message()));
    return 2;
  }
  Smoke smoke(*channel, *authorization);
  const std::string name = fmt::format("smoke-{:08x}", std::random_device()());
  grpc::Status status = smoke.Upload(name);
  const char* step = "upload";
  if (status.ok()) {
    step = "apply";
    status = smoke.Apply(name);
    const grpc::Status unloaded = smoke.Unload(name);  // whatever came of it
    if (status.ok()) {
      step = "unload";
      status = unloaded;
    }
  }
  if (status.ok()) {
    fmt::print("{} uploaded, applied and unloaded an adapter\n", options.address);
  } else {
    fmt::print(stderr, "{}: {}: {}\n", options.address, step, status.error_message());
  }
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace adapterd

int main(int argc, char** argv) {
  CLI::App app("Uploads a tiny adapter, applies it, compares the numbers, and unloads it.");
  adapterd::ProbeOptions options;
  adapterd::AddConnectionFlags(app, options);
  adapterd::AddTokenFlag(app, options);
  CLI11_PARSE(app, argc, argv);
  return adapterd::Run(options);
}
