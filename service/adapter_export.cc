#include "service/adapter_export.h"

#include <fmt/format.h>

#include <cstring>

#include "core/adapter/gguf_export.h"
#include "core/adapter/gguf_names.h"
#include "core/adapter/peft_export.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/adapter_convert.h"
#include "service/adapter_refs.h"
#include "service/field_error.h"
#include "service/tensor_convert.h"

namespace adapterd {
namespace {

using Write = std::function<absl::Status(const v1::ExportAdapterResponse&)>;

void Send(const Tensor& tensor, const Shape& shape, v1::Tensor& out) {
  SetTypeAndShape(tensor.dtype(), shape, out);
  out.set_data(tensor.bytes().data(), tensor.bytes().size());
}

absl::Status WriteFileStart(const std::string& name, int64_t size, const Write& write) {
  v1::ExportAdapterResponse response;
  response.mutable_file()->set_name(name);
  response.mutable_file()->set_size(size);
  return write(response);
}

absl::Status WriteData(std::span<const std::byte> bytes, const Write& write) {
  v1::ExportAdapterResponse response;
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min<size_t>(bytes.size(), kExportPieceBytes));
    response.set_data(piece.data(), piece.size());
    RETURN_IF_ERROR(write(response));
    bytes = bytes.subspan(piece.size());
  }
  return absl::OkStatus();
}

}  // namespace

Tensor TensorOf(const AdapterHandle& adapter, size_t module, TensorRole role) {
  const ModuleInfo& info = adapter.manifest().modules[module];
  const ModuleExtras& extras = adapter->extras(module);
  const auto copy = [](const Tensor& tensor) {
    AlignedBuffer buffer(tensor.bytes().size());
    std::memcpy(buffer.data(), tensor.bytes().data(), buffer.size());
    return Tensor(tensor.dtype(), tensor.shape(), std::move(buffer));
  };
  switch (role) {
    case TensorRole::kLoraBias:
      return copy(extras.lora_bias);
    case TensorRole::kMagnitude:
      return copy(extras.magnitude);
    case TensorRole::kWeight:
      return copy(extras.weight);
    case TensorRole::kBias:
      return copy(extras.bias);
    default:
      break;
  }
  const bool is_a = role == TensorRole::kLoraA;
  const int64_t rows = is_a ? info.rank : info.out_features;
  const int64_t cols = is_a ? info.columns() : info.rank;
  const DType dtype = is_a ? info.lora_a_dtype : info.lora_b_dtype;
  const int64_t bytes = rows * cols * FloatBytes(dtype);
  AlignedBuffer all(info.pairs() * bytes);
  for (int64_t pair = 0; pair < info.pairs(); ++pair) {
    const PairFactors factors = adapter->Factors(module, pair);
    std::memcpy(all.data() + pair * bytes, (is_a ? factors.lora_a : factors.lora_b).bytes().data(),
                bytes);
  }
  return Tensor(dtype, {info.pairs() * rows, cols}, std::move(all));
}

absl::Status CheckExport(const v1::ExportAdapterRequest& request) {
  RETURN_IF_ERROR(CheckAdapterName(request.name(), "name"));
  if (request.format() == v1::ADAPTER_FORMAT_GGUF) {
    if (FindGgufArchitecture(request.architecture()) != nullptr) return absl::OkStatus();
    return FieldError("architecture", fmt::format("one of {}", KnownGgufArchitectures()),
                      request.architecture());
  }
  if (request.format() != v1::ADAPTER_FORMAT_UNSPECIFIED &&
      request.format() != v1::ADAPTER_FORMAT_PEFT) {
    return FieldError("format", "ADAPTER_FORMAT_PEFT or ADAPTER_FORMAT_GGUF",
                      fmt::format("{}", static_cast<int>(request.format())));
  }
  if (request.architecture().empty()) return absl::OkStatus();
  return FieldError("architecture", "nothing but with ADAPTER_FORMAT_GGUF", request.architecture());
}

absl::Status FillTensors(const RpcCall& call, const v1::GetAdapterTensorsRequest& request,
                         const AdapterHandle& adapter, v1::GetAdapterTensorsResponse& response) {
  const AdapterRef ref{request.name(), ""};
  ASSIGN_OR_RETURN(const ModuleSelector selector, SelectorFromProto(request.module(), "module"));
  ASSIGN_OR_RETURN(const auto module,
                   ResolveModule(adapter, ref, selector, "module", /*skip_untargeted=*/false));
  const ModuleInfo& info = *module->info;
  const ModuleExtras& extras = adapter->extras(module->index);
  if (info.kind == ModuleKind::kReplacement) {
    return Error(Reason::kUnsupportedAdapter,
                 fmt::format("module {} is replaced as a whole: it has no factors", info.path))
        .With("adapter", request.name())
        .With("module", info.path);
  }
  const auto elements = info.rank * (info.columns() + info.out_features);
  RETURN_IF_ERROR(call.CheckMessageSize("reply", elements * FloatBytes(info.lora_a_dtype)));
  PairFactors factors;  // of no rank: empty
  if (info.pairs() > 0) factors = adapter->Factors(module->index, module->pair);
  Shape a_shape = {info.rank, info.in_features};
  a_shape.insert(a_shape.end(), info.kernel.begin(), info.kernel.end());
  Send(factors.lora_a, a_shape, *response.mutable_lora_a());
  Send(factors.lora_b, {info.out_features, info.rank}, *response.mutable_lora_b());
  const Shape vector = {info.out_features};
  if (info.has_magnitude) Send(extras.magnitude, vector, *response.mutable_magnitude());
  if (info.has_lora_bias) Send(extras.lora_bias, vector, *response.mutable_bias());
  response.set_scale(info.scale);
  return absl::OkStatus();
}

absl::Status WriteExport(const v1::ExportAdapterRequest& request, const AdapterHandle& adapter,
                         const Write& write) {
  const auto lookup = [&](size_t module, TensorRole role) {
    return TensorOf(adapter, module, role);
  };
  const auto write_data = [&](std::span<const std::byte> bytes) { return WriteData(bytes, write); };
  if (request.format() == v1::ADAPTER_FORMAT_GGUF) {
    const absl::StatusOr<GgufExport> file =
        GgufExport::Create(adapter.manifest(), request.architecture());
    if (!file.ok()) return Annotate(file.status(), "adapter", request.name());
    RETURN_IF_ERROR(WriteFileStart("adapter.gguf", file->file_bytes(), write));
    return file->Write(lookup, write_data);
  }
  ASSIGN_OR_RETURN(const PeftExport files, PeftExport::Create(adapter.manifest()));
  RETURN_IF_ERROR(
      WriteFileStart("adapter_config.json", static_cast<int64_t>(files.config().size()), write));
  RETURN_IF_ERROR(write_data(std::as_bytes(std::span<const char>(files.config()))));
  RETURN_IF_ERROR(WriteFileStart("adapter_model.safetensors", files.weights_bytes(), write));
  return files.WriteWeights(lookup, write_data);
}

}  // namespace adapterd
