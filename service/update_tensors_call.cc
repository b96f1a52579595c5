#include "service/update_tensors_call.h"

#include <fmt/format.h>

#include <cstring>
#include <utility>

#include "core/adapter/new_adapter.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "service/adapter_convert.h"
#include "service/adapter_export.h"
#include "service/field_error.h"
#include "service/stored_load.h"

namespace adapterd {
namespace {

Error Refused(Reason reason, const std::string& field, const std::string& what,
              const std::string& path) {
  return Error(reason, fmt::format("{}: {} of module {}", field, what, Quoted(path)))
      .With("field", field)
      .With("module", Printable(path));
}

constexpr char kFieldA[] = "tensor.lora_a";
constexpr char kFieldB[] = "tensor.lora_b";

const char* FieldOf(TensorRole role) { return role == TensorRole::kLoraA ? kFieldA : kFieldB; }

// The shapes that GetAdapterTensors shows; those of experts one after the other.
Shape ShapeOf(const ModuleInfo& info, TensorRole role) {
  if (role == TensorRole::kLoraB) return {info.pairs() * info.out_features, info.rank};
  Shape shape = {info.pairs() * info.rank, info.in_features};
  shape.insert(shape.end(), info.kernel.begin(), info.kernel.end());
  return shape;
}

absl::Status CheckFactor(const FloatTensor& tensor, const ModuleInfo& info, TensorRole role) {
  const std::string field = FieldOf(role);
  const DType dtype = role == TensorRole::kLoraA ? info.lora_a_dtype : info.lora_b_dtype;
  if (tensor.dtype() != dtype) {
    return Refused(Reason::kUnsupportedDtype, field,
                   fmt::format("expected {} as the adapter has it, found {}", DTypeName(dtype),
                               DTypeName(tensor.dtype())),
                   info.path);
  }
  const Shape shape = ShapeOf(info, role);
  if (tensor.shape() != shape) {
    return Refused(
        Reason::kShapeMismatch, field,
        fmt::format("expected {}, found {}", ShapeString(shape), ShapeString(tensor.shape())),
        info.path);
  }
  return absl::OkStatus();
}

}  // namespace

grpc::ServerReadReactor<v1::UpdateAdapterTensorsRequest>* AdapterService::UpdateAdapterTensors(
    grpc::CallbackServerContext* context, v1::UpdateAdapterTensorsResponse* response) {
  return UpdateTensorsCall::Start(plane_, update_tensors_, context, response).get();
}

std::shared_ptr<UpdateTensorsCall> UpdateTensorsCall::Start(
    ControlPlane& plane, RpcMetrics& metrics, grpc::CallbackServerContext* context,
    v1::UpdateAdapterTensorsResponse* response) {
  std::shared_ptr<UpdateTensorsCall> call(new UpdateTensorsCall(plane, metrics, context, response));
  call->self_ = call;
  absl::Status status = call->record_.Admit();
  if (status.ok()) status = CheckStore(plane);
  if (status.ok()) {
    call->StartRead(&call->message_);
  } else {
    call->End(status);
  }
  return call;
}

UpdateTensorsCall::UpdateTensorsCall(ControlPlane& plane, RpcMetrics& metrics,
                                     grpc::CallbackServerContext* context,
                                     v1::UpdateAdapterTensorsResponse* response)
    : plane_(plane),
      response_(response),
      record_(plane.environment, metrics, Plane::kControl, context, 0) {
  load_.replace = true;
  load_.keep_options = true;
}

void UpdateTensorsCall::OnReadDone(bool ok) {
  plane_.io_pool.Submit([call = shared_from_this(), ok] {
    if (ok) {
      call->TakeMessage();
    } else {
      call->all_here_ = true;
      call->Publish();
    }
  });
}

void UpdateTensorsCall::TakeMessage() {
  const bool is_start = message_.has_start();
  const absl::Status status = GuardedCall([this] { return Take(); });
  if (!status.ok()) return End(status);
  if (is_start) return Acquire();
  StartRead(&message_);
}

absl::Status UpdateTensorsCall::Take() {
  RETURN_IF_ERROR(record_.cancellation().Check());
  const auto bytes = static_cast<int64_t>(message_.ByteSizeLong());
  RETURN_IF_ERROR(record_.AdmitMessage(bytes));
  switch (message_.content_case()) {
    case v1::UpdateAdapterTensorsRequest::kStart:
      return TakeStart(message_.start());
    case v1::UpdateAdapterTensorsRequest::kTensor:
      return TakeTensors(std::unique_ptr<v1::UpdatedTensors>(message_.release_tensor()));
    default:
      return FieldError("content", "start or tensor", "neither");
  }
}

absl::Status UpdateTensorsCall::TakeStart(const v1::UpdateTensorsStart& start) {
  if (!load_.name.empty()) {
    return FieldError("start", "it once, as the first message", "a second one");
  }
  record_.AuditRequest(start);
  RETURN_IF_ERROR(CheckAdapterName(start.name(), "start.name"));
  load_.name = start.name();
  load_.etag = start.etag();
  return absl::OkStatus();
}

void UpdateTensorsCall::Acquire() {
  auto ticket = plane_.registry.Acquire(
      {{load_.name, ""}}, /*skip_disabled=*/false,
      [call = shared_from_this()](absl::StatusOr<std::vector<AdapterHandle>> handles) {
        call->plane_.io_pool.Submit(
            [call, handles = std::move(handles)]() mutable { call->Acquired(std::move(handles)); });
      });
  record_.WhenCancelled([this, ticket] { plane_.registry.Cancel(ticket); });
}

void UpdateTensorsCall::Acquired(absl::StatusOr<std::vector<AdapterHandle>> handles) {
  const absl::Status status = GuardedCall([&] { return UseAdapter(std::move(handles)); });
  if (!status.ok()) return End(status);
  if (all_here_) return Publish();
  StartRead(&message_);
}

// The registry decides later, when the load begins, whether the adapter is still the same.
absl::Status UpdateTensorsCall::UseAdapter(absl::StatusOr<std::vector<AdapterHandle>> handles) {
  RETURN_IF_ERROR(handles.status());
  adapter_ = std::move(handles->front());
  ASSIGN_OR_RETURN(const AdapterSnapshot snapshot, plane_.registry.Get(load_.name));
  load_.successor_of = adapter_->revision();
  load_.source = snapshot.source_spec;
  load_.source.source.clear();
  load_.source.watched = false;
  load_.owner = AdapterOwner::kClients;
  RETURN_IF_ERROR(plane_.registry.CheckRoomFor(load_, adapter_.manifest()));
  for (const auto& [path, update] : updates_) RETURN_IF_ERROR(CheckFits(update));
  return absl::OkStatus();
}

absl::Status UpdateTensorsCall::TakeTensors(std::unique_ptr<v1::UpdatedTensors> tensors) {
  if (load_.name.empty()) return FieldError("start", "it as the first message", "tensor");
  const std::string path = tensors->path();
  if (!tensors->has_lora_a() && !tensors->has_lora_b()) {
    return Refused(Reason::kInvalidField, "tensor",
                   "expected lora_a, lora_b or both, found neither", path);
  }
  Update update;
  if (tensors->has_lora_a()) {
    ASSIGN_OR_RETURN(update.lora_a, FloatTensor::Read(tensors->lora_a(), kFieldA));
  }
  if (tensors->has_lora_b()) {
    ASSIGN_OR_RETURN(update.lora_b, FloatTensor::Read(tensors->lora_b(), kFieldB));
  }
  update.message = std::move(tensors);
  RETURN_IF_ERROR(CheckFits(update));
  for (const TensorRole role : {TensorRole::kLoraA, TensorRole::kLoraB}) {
    const std::optional<FloatTensor>& tensor = update.Factor(role);
    if (!tensor) continue;
    RETURN_IF_ERROR(
        CheckFinite({tensor->dtype(), tensor->shape(), tensor->bytes()}, FieldOf(role), path));
  }
  if (updates_.emplace(path, std::move(update)).second) return absl::OkStatus();
  return Refused(Reason::kInvalidField, "tensor.path", "expected it once, found a second update",
                 path);
}

absl::Status UpdateTensorsCall::CheckFits(const Update& update) const {
  const AdapterManifest& manifest = adapter_.manifest();
  ModuleSelector selector;
  selector.path = update.message->path();
  const absl::StatusOr<size_t> module = manifest.index.Find(selector);
  if (!module.ok()) return Annotate(module.status(), "adapter", load_.name);
  const ModuleInfo& info = manifest.modules[*module];
  if (info.pairs() == 0) {
    return Refused(Reason::kUnsupportedAdapter, "tensor.path",
                   "expected one with factors, found none", info.path);
  }
  for (const TensorRole role : {TensorRole::kLoraA, TensorRole::kLoraB}) {
    const std::optional<FloatTensor>& tensor = update.Factor(role);
    if (tensor) RETURN_IF_ERROR(CheckFactor(*tensor, info, role));
  }
  return absl::OkStatus();
}

Tensor UpdateTensorsCall::NewTensor(size_t module, TensorRole role) const {
  const auto update = updates_.find(adapter_.manifest().modules[module].path);
  const bool is_factor = role == TensorRole::kLoraA || role == TensorRole::kLoraB;
  if (!is_factor || update == updates_.end()) return TensorOf(adapter_, module, role);
  const std::optional<FloatTensor>& tensor = update->second.Factor(role);
  if (!tensor) return TensorOf(adapter_, module, role);
  AlignedBuffer bytes(tensor->bytes().size());
  std::memcpy(bytes.data(), tensor->data(), bytes.size());
  return Tensor(tensor->dtype(), tensor->shape(), std::move(bytes));
}

absl::StatusOr<StoredContent> UpdateTensorsCall::Store() {
  RETURN_IF_ERROR(record_.cancellation().Check());
  if (load_.name.empty()) return FieldError("start", "it as the first message", "the end");
  if (updates_.empty()) return FieldError("tensor", "at least one", "none");
  MadeAdapter made;
  made.manifest = std::make_shared<const AdapterManifest>(adapter_.manifest());
  made.tensors = [this](size_t module, TensorRole role) { return NewTensor(module, role); };
  return StoreForLoad(plane_, load_, made, record_.cancellation());
}

void UpdateTensorsCall::Publish() {
  v1::UpdateAdapterTensorsRequest().Swap(&message_);
  StoredContent stored;
  const absl::Status status = GuardedCall([&]() -> absl::Status {
    ASSIGN_OR_RETURN(stored, Store());
    return absl::OkStatus();
  });
  if (!status.ok()) return End(status);
  adapter_ = AdapterHandle();  // so that it can make room
  auto ticket = LoadStored(plane_, std::move(stored), load_,
                           [call = shared_from_this()](const absl::StatusOr<LoadResult>& result) {
                             call->plane_.io_pool.Submit([call, result] { call->Loaded(result); });
                           });
  record_.WhenCancelled([this, ticket] { plane_.registry.Cancel(ticket); });
}

void UpdateTensorsCall::Loaded(const absl::StatusOr<LoadResult>& result) {
  const bool was_overtaken =
      !result.ok() && GetErrorDetails(result.status()).reason == Reason::kRevisionMismatch;
  if (was_overtaken) return Acquire();
  if (result.ok()) {
    ToProto(result->adapter, v1::ADAPTER_VIEW_BASIC, *response_->mutable_adapter());
  }
  End(result.status());
}

void UpdateTensorsCall::End(const absl::Status& status) {
  adapter_ = AdapterHandle();  // a client that has its answer finds nothing held
  const int64_t bytes = status.ok() ? static_cast<int64_t>(response_->ByteSizeLong()) : 0;
  if (status.ok()) record_.AuditResponse(*response_);
  Finish(record_.End(status, bytes));
}

void UpdateTensorsCall::OnDone() {
  record_.OnDone();
  const std::shared_ptr<UpdateTensorsCall> self = std::move(self_);
  record_.Left();
}

}  // namespace adapterd
