#include "service/adapter_creation.h"

#include <fmt/format.h>

#include <memory>
#include <utility>

#include "core/base/status_macros.h"
#include "service/adapter_service.h"
#include "service/field_error.h"
#include "service/stored_load.h"
#include "service/tensor_convert.h"

namespace adapterd {
namespace {

// A field that only a geometry takes.
absl::Status CheckOnlyTensors(const v1::CreateAdapterRequest& request) {
  const char* field = request.target_modules_size() > 0              ? "target_modules"
                      : request.has_rank()                           ? "rank"
                      : request.has_alpha()                          ? "alpha"
                      : request.use_rslora()                         ? "use_rslora"
                      : request.seed() != 0                          ? "seed"
                      : request.dtype() != v1::DATA_TYPE_UNSPECIFIED ? "dtype"
                                                                     : nullptr;
  if (field == nullptr) return absl::OkStatus();
  return FieldError(field, "nothing beside tensors, which say it themselves", "a value");
}

absl::StatusOr<MadeAdapter> FreshFromProto(const v1::CreateAdapterRequest& request) {
  FreshAdapter fresh;
  fresh.geometry = GeometryFromProto(request.geometry());
  fresh.target_modules = TargetsFromProto(request.target_modules());
  if (request.has_rank()) fresh.rank = request.rank();
  if (request.has_alpha()) fresh.alpha = request.alpha();
  fresh.use_rslora = request.use_rslora();
  fresh.seed = request.seed();
  ASSIGN_OR_RETURN(fresh.dtype, FactorTypeFromProto(request.dtype()));
  return MakeFresh(fresh);
}

absl::StatusOr<MadeAdapter> GivenFromProto(const v1::CreateAdapterRequest& request) {
  RETURN_IF_ERROR(CheckOnlyTensors(request));
  // What f32_values of a narrower type are converted to has to live as long as its views.
  auto tensors = std::make_shared<std::vector<FloatTensor>>();
  const auto read = [&](const v1::Tensor& message,
                        const std::string& field) -> absl::StatusOr<GivenTensor> {
    ASSIGN_OR_RETURN(FloatTensor floats, FloatTensor::Read(message, field));
    const FloatTensor& tensor = tensors->emplace_back(std::move(floats));
    return GivenTensor{tensor.dtype(), tensor.shape(), tensor.bytes()};
  };
  std::vector<GivenPair> pairs;
  for (int i = 0; i < request.tensors().modules_size(); ++i) {
    const v1::ModuleTensors& module = request.tensors().modules(i);
    const std::string field = fmt::format("{}[{}]", kGivenPairsField, i);
    GivenPair& pair = pairs.emplace_back();
    pair.path = module.path();
    if (module.has_alpha()) pair.alpha = module.alpha();
    if (module.has_lora_a()) {
      ASSIGN_OR_RETURN(pair.lora_a, read(module.lora_a(), field + ".lora_a"));
    }
    if (module.has_lora_b()) {
      ASSIGN_OR_RETURN(pair.lora_b, read(module.lora_b(), field + ".lora_b"));
    }
  }
  ASSIGN_OR_RETURN(MadeAdapter made, MakeFromPairs(std::move(pairs)));
  made.tensors = [tensors, lookup = std::move(made.tensors)](size_t module, TensorRole role) {
    return lookup(module, role);
  };
  return made;
}

}  // namespace

ModelGeometry GeometryFromProto(const v1::ModelGeometry& geometry) {
  ModelGeometry out;
  out.hidden_size = geometry.hidden_size();
  out.intermediate_size = geometry.intermediate_size();
  out.num_layers = geometry.num_layers();
  out.num_attention_heads = geometry.num_attention_heads();
  out.num_key_value_heads = geometry.num_key_value_heads();
  if (geometry.has_head_dim()) out.head_dim = geometry.head_dim();
  if (geometry.has_vocab_size()) out.vocab_size = geometry.vocab_size();
  out.path_templates = {geometry.path_templates().begin(), geometry.path_templates().end()};
  return out;
}

std::vector<std::string> TargetsFromProto(
    const google::protobuf::RepeatedPtrField<std::string>& targets) {
  if (targets.empty()) return FreshAdapter().target_modules;
  return {targets.begin(), targets.end()};
}

absl::StatusOr<DType> FactorTypeFromProto(v1::DataType dtype) {
  if (dtype == v1::DATA_TYPE_UNSPECIFIED) return DType::kF32;
  return FloatTypeFromProto(dtype, "dtype");
}

absl::StatusOr<MadeAdapter> MadeFromProto(const v1::CreateAdapterRequest& request) {
  switch (request.content_case()) {
    case v1::CreateAdapterRequest::kTensors:
      return GivenFromProto(request);
    case v1::CreateAdapterRequest::kGeometry:
      return FreshFromProto(request);
    default:
      return FieldError("content", "tensors or geometry", "neither");
  }
}

grpc::ServerUnaryReactor* AdapterService::CreateAdapter(grpc::CallbackServerContext* context,
                                                        const v1::CreateAdapterRequest* request,
                                                        v1::CreateAdapterResponse* response) {
  auto call = Start(create_, context, *request);
  if (call->answered()) return call.get();
  LoadRequest load;
  load.name = request->name();
  load.keep_options = true;
  ServeMade(plane_, call, std::move(load), response, [request]() -> absl::StatusOr<MadeAdapter> {
    RETURN_IF_ERROR(CheckAdapterName(request->name(), "name"));
    return MadeFromProto(*request);
  });
  return call.get();
}

}  // namespace adapterd
