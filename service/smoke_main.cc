// adapterd_smoke: exit code 0 when the server at ADDRESS (default 127.0.0.1:50051) takes an adapter
// of seven numbers, applies it right, and lets it go. For tests of an installation, which bring no
// gRPC client and no adapter.
#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <random>
#include <string>
#include <vector>

#include "adapterd/v1/adapter_service.grpc.pb.h"
#include "adapterd/v1/projection_service.grpc.pb.h"

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

void Limit(grpc::ClientContext& context) {
  context.set_deadline(std::chrono::system_clock::now() + kTimeout);
  context.set_wait_for_ready(true);
}

grpc::Status Upload(v1::AdapterService::Stub& adapters, const std::string& name) {
  grpc::ClientContext context;
  Limit(context);
  v1::UploadAdapterResponse response;
  const auto writer = adapters.UploadAdapter(&context, &response);
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

grpc::Status Apply(const std::shared_ptr<grpc::Channel>& channel, const std::string& name) {
  grpc::ClientContext context;
  Limit(context);
  v1::ApplyProjectionRequest request;
  request.mutable_adapter()->set_name(name);
  request.add_projections()->mutable_module()->set_path(kModule);
  request.mutable_input()->add_shape(4);
  request.mutable_input()->mutable_f32_values()->Add(kX.begin(), kX.end());
  v1::ApplyProjectionResponse response;
  const grpc::Status status =
      v1::ProjectionService::NewStub(channel)->ApplyProjection(&context, request, &response);
  if (!status.ok()) return status;
  const auto& values = response.outputs(0).output().f32_values();
  if (std::vector<float>(values.begin(), values.end()) != kDelta) {
    return {grpc::StatusCode::DATA_LOSS, "the projection is wrong"};
  }
  return status;
}

grpc::Status Unload(v1::AdapterService::Stub& adapters, const std::string& name) {
  grpc::ClientContext context;
  Limit(context);
  v1::UnloadAdapterRequest request;
  request.set_name(name);
  v1::UnloadAdapterResponse response;
  const grpc::Status status = adapters.UnloadAdapter(&context, request, &response);
  if (status.ok() && !response.freed()) {
    return {grpc::StatusCode::INTERNAL, "the memory of the adapter is not free"};
  }
  return status;
}

int Run(const std::string& address) {
  const auto channel = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  const auto adapters = v1::AdapterService::NewStub(channel);
  const std::string name = fmt::format("smoke-{:08x}", std::random_device()());
  grpc::Status status = Upload(*adapters, name);
  const char* step = "upload";
  if (status.ok()) {
    step = "apply";
    status = Apply(channel, name);
    const grpc::Status unloaded = Unload(*adapters, name);  // whatever came of it
    if (status.ok()) {
      step = "unload";
      status = unloaded;
    }
  }
  if (status.ok()) {
    fmt::print("{} uploaded, applied and unloaded an adapter\n", address);
  } else {
    fmt::print(stderr, "{}: {}: {}\n", address, step, status.error_message());
  }
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace adapterd

int main(int argc, char** argv) { return adapterd::Run(argc > 1 ? argv[1] : "127.0.0.1:50051"); }
