// A client of adapterd: loads the toy adapter, applies it to one row, and merges it into one
// weight.
//
//   client SERVICE_CONFIG [TARGET]
//
// SERVICE_CONFIG is examples/service_config.json; TARGET is 127.0.0.1:50051 by default, and behind
// Kubernetes dns:///adapterd-headless:50051.
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "adapterd/v1/adapter_service.grpc.pb.h"
#include "adapterd/v1/merge_service.grpc.pb.h"
#include "adapterd/v1/projection_service.grpc.pb.h"

namespace v1 = adapterd::v1;

namespace {

constexpr int kRetryBufferBytes = 64 << 20;  // only what is still in there can be sent again
// A rolling update may replace all replicas within the 30 s that addresses are kept by default.
constexpr int kResolveMilliseconds = 1000;

std::shared_ptr<grpc::Channel> Connect(const std::string& target,
                                       const std::string& service_config) {
  grpc::ChannelArguments arguments;
  // Retries, balancing between replicas, and health checks: gRPC does all three when told so.
  arguments.SetServiceConfigJSON(service_config);
  // Replies can be larger than the 4 MB that clients accept by default.
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_PER_RPC_RETRY_BUFFER_SIZE, kRetryBufferBytes);
  arguments.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, kResolveMilliseconds);
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
}

// F32, row-major. Tensors are little-endian, as every machine that gRPC is built for here.
v1::Tensor ToTensor(const std::vector<float>& values, int64_t rows, int64_t columns) {
  v1::Tensor tensor;
  tensor.set_dtype(v1::DATA_TYPE_F32);
  tensor.add_shape(rows);
  tensor.add_shape(columns);
  tensor.set_data(values.data(), values.size() * sizeof(float));
  return tensor;
}

void Print(const char* what, const v1::Tensor& tensor) {
  std::vector<float> values(tensor.data().size() / sizeof(float));
  std::memcpy(values.data(), tensor.data().data(), tensor.data().size());
  std::cout << what;
  for (const float value : values) std::cout << ' ' << value;
  std::cout << '\n';
}

grpc::Status Run(const std::shared_ptr<grpc::Channel>& channel) {
  v1::ModuleSelector module;
  module.set_target("q_proj");
  module.set_layer(0);

  grpc::ClientContext load_context;
  load_context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  v1::LoadAdapterRequest load;
  load.set_name("toy");
  load.set_source("toy");
  v1::LoadAdapterResponse loaded;  // also when it is there already: equal content is no change
  grpc::Status status =
      v1::AdapterService::NewStub(channel)->LoadAdapter(&load_context, load, &loaded);
  if (!status.ok()) return status;
  std::cout << "revision " << loaded.adapter().revision() << '\n';

  grpc::ClientContext apply_context;  // its deadline, and retries: the service config
  v1::ApplyProjectionRequest apply;
  apply.mutable_adapter()->set_name("toy");
  *apply.add_projections()->mutable_module() = module;
  *apply.mutable_input() = ToTensor({1, 2, 3, 4}, 1, 4);
  v1::ApplyProjectionResponse applied;
  status =
      v1::ProjectionService::NewStub(channel)->ApplyProjection(&apply_context, apply, &applied);
  if (!status.ok()) return status;
  Print("delta", applied.outputs(0).output());

  grpc::ClientContext merge_context;
  v1::MergeRequest merge;
  merge.add_adapters()->set_name("toy");
  *merge.mutable_module() = module;
  *merge.mutable_weight() = ToTensor(std::vector<float>(12, 1), 3, 4);
  v1::MergeResponse merged;
  status = v1::MergeService::NewStub(channel)->Merge(&merge_context, merge, &merged);
  if (status.ok()) Print("merged", merged.weight());
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: client SERVICE_CONFIG [TARGET]\n";
    return 2;
  }
  std::ostringstream service_config;
  service_config << std::ifstream(argv[1]).rdbuf();
  const std::string target = argc > 2 ? argv[2] : "127.0.0.1:50051";
  const grpc::Status status = Run(Connect(target, service_config.str()));
  if (!status.ok()) std::cerr << status.error_code() << ": " << status.error_message() << '\n';
  return status.ok() ? 0 : 1;
}
