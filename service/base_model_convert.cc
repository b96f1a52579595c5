#include "service/base_model_convert.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/tensor/convert.h"
#include "service/adapter_convert.h"
#include "service/field_error.h"
#include "service/tensor_convert.h"

namespace adapterd {
namespace {

constexpr int64_t kDefaultBlock = 64;  // as in the QLoRA paper

void FillModule(const HostedModule& module, const MergedOverlay* overlay, v1::BaseModule& out) {
  out.set_path(module.path);
  for (const int64_t dim : module.shape) out.add_shape(dim);
  out.set_dtype(ToProto(module.dtype));
  out.set_memory_bytes(module.memory_bytes + (overlay == nullptr ? 0 : overlay->memory_bytes()));
  out.set_quantization_error(module.quantization_error);
  if (overlay == nullptr) return;
  for (const MergedAdapter& merged : overlay->adapters()) {
    v1::MergedAdapter& adapter = *out.add_merged_adapters();
    adapter.set_name(merged.name);
    adapter.set_revision(merged.revision);
    adapter.set_weight(static_cast<float>(merged.weight));
  }
}

// The rows of a weight that a request means.
struct Rows {
  int64_t first = 0;
  int64_t count = 0;
  Shape shape;
};

absl::StatusOr<Rows> RowsOf(const HostedModule& module, const ModuleSelector& selector) {
  if (!selector.expert) return Rows{0, module.rows, module.shape};
  const bool holds_experts = module.is_parameter && module.shape.size() == 3;
  const int64_t experts = holds_experts ? module.shape[0] : 0;
  if (*selector.expert >= experts) {
    return Error(Reason::kInvalidField, fmt::format("module: {} has {} experts, found expert {}",
                                                    module.path, experts, *selector.expert))
        .With("field", "module")
        .With("module", module.path);
  }
  const int64_t rows = module.shape[1];
  return Rows{*selector.expert * rows, rows, {rows, module.shape[2]}};
}

}  // namespace

absl::StatusOr<BaseLoadRequest> BaseLoadFromProto(const v1::LoadBaseModelRequest& request) {
  RETURN_IF_ERROR(CheckAdapterName(request.name(), "name"));
  if (request.source().empty()) return FieldError("source", "a path below a model root", "");
  BaseLoadRequest load;
  load.name = request.name();
  load.source = request.source();
  load.modules = {request.modules().begin(), request.modules().end()};
  if (request.has_block_size() && request.block_size() < 1) {
    return FieldError("block_size", "at least 1", std::to_string(request.block_size()));
  }
  switch (request.quantization()) {
    case v1::QUANTIZATION_UNSPECIFIED:
    case v1::QUANTIZATION_NONE:
      if (!request.has_block_size()) return load;
      return FieldError("block_size", "none without quantization",
                        std::to_string(request.block_size()));
    case v1::QUANTIZATION_NF4:
      load.nf4_block = request.has_block_size() ? request.block_size() : kDefaultBlock;
      return load;
    default:
      return FieldError("quantization", "NONE or NF4",
                        std::to_string(static_cast<int>(request.quantization())));
  }
}

absl::StatusOr<BaseMergePlan> PlanBaseMerge(const v1::MergeAdapterRequest& request) {
  RETURN_IF_ERROR(CheckAdapterName(request.base_model(), "base_model"));
  if (request.adapters().empty()) return FieldError("adapters", "at least one", "none");
  BaseMergePlan plan;
  for (int i = 0; i < request.adapters_size(); ++i) {
    ASSIGN_OR_RETURN(const AdapterRefs::Use use,
                     plan.refs.Add(request.adapters(i), fmt::format("adapters[{}]", i)));
    plan.uses.push_back(use);
  }
  return plan;
}

BaseMergeRequest BaseMergePlan::Request(const v1::MergeAdapterRequest& request,
                                        std::vector<AdapterHandle> handles) const {
  std::vector<std::shared_ptr<const AdapterHandle>> shared;
  for (AdapterHandle& handle : handles) {
    shared.push_back(std::make_shared<const AdapterHandle>(std::move(handle)));
  }
  BaseMergeRequest merge;
  for (const AdapterRefs::Use& use : uses) {
    merge.adapters.push_back({refs.refs()[use.ref].name, use.weight, shared[use.ref]});
  }
  merge.modules = {request.modules().begin(), request.modules().end()};
  merge.skip_merged = request.skip_merged();
  return merge;
}

absl::StatusOr<BaseUnmergeRequest> BaseUnmergeFromProto(const v1::UnmergeAdapterRequest& request) {
  RETURN_IF_ERROR(CheckAdapterName(request.base_model(), "base_model"));
  BaseUnmergeRequest unmerge;
  for (int i = 0; i < request.adapters_size(); ++i) {
    const std::string field = fmt::format("adapters[{}]", i);
    ASSIGN_OR_RETURN(AdapterRef ref, RefFromProto(request.adapters(i), field));
    // What an alias points at now may be another revision than what it was when it was merged.
    if (!ref.alias.empty()) return FieldError(field, "a name without an alias", ref.alias);
    unmerge.adapters.push_back({std::move(ref.name), std::move(ref.revision)});
  }
  unmerge.modules = {request.modules().begin(), request.modules().end()};
  unmerge.skip_unmerged = request.skip_unmerged();
  return unmerge;
}

void ToProto(const NamedBase& named, v1::BaseModel& out) {
  const HostedBase& base = *named.base;
  const Overlays overlays = base.overlays();
  out.set_name(named.name);
  out.set_fingerprint(base.fingerprint());
  out.set_source(base.source());
  out.set_memory_bytes(base.base_bytes() + OverlayBytes(overlays));
  std::set<std::string> adapters;
  int64_t parameters = 0;
  int64_t file_bytes = 0;
  for (size_t i = 0; i < overlays.size(); ++i) {
    const HostedModule& module = base.modules()[i];
    const int64_t elements = module.is_tied ? 0 : module.rows * module.cols;
    const auto bias_bytes = static_cast<int64_t>(module.bias.bytes().size());
    parameters += elements + bias_bytes / FloatBytes(module.bias.dtype());
    file_bytes += elements * FloatBytes(module.dtype) + bias_bytes;
    FillModule(module, overlays[i].get(), *out.add_modules());
    if (overlays[i] == nullptr) continue;
    for (const MergedAdapter& merged : overlays[i]->adapters()) adapters.insert(merged.name);
  }
  out.set_parameter_count(parameters);
  out.set_saved_bytes(file_bytes - base.base_bytes());
  for (const std::string& adapter : adapters) out.add_merged_adapters(adapter);
}

absl::Status WriteBaseWeight(
    const NamedBase& base, const v1::GetBaseWeightRequest& request,
    const std::function<absl::Status(const v1::GetBaseWeightResponse&)>& write) {
  ASSIGN_OR_RETURN(const ModuleSelector selector, SelectorFromProto(request.module(), "module"));
  ASSIGN_OR_RETURN(const size_t index, base.base->Find(selector));
  const ModuleSnapshot snapshot = base.base->Snapshot(index);
  const HostedModule& module = *snapshot.module;
  ASSIGN_OR_RETURN(const Rows rows, RowsOf(module, selector));
  const std::optional<MatrixView> weight = snapshot.weight();
  // Of a quantised module always F32, which holds what is merged into it, in BF16, exactly.
  const DType dtype = module.nf4 != nullptr ? DType::kF32 : weight->dtype;
  const int64_t row_bytes = module.cols * FloatBytes(dtype);
  const int64_t piece_rows =
      std::max<int64_t>(1, row_bytes == 0 ? rows.count : kWeightPieceBytes / row_bytes);
  v1::GetBaseWeightResponse response;
  response.set_dtype(ToProto(dtype));
  for (const int64_t dim : rows.shape) response.add_shape(dim);
  int64_t row = 0;
  do {  // a weight without rows has a first message, too
    const int64_t count = std::min(piece_rows, rows.count - row);
    response.set_first_row(row);
    std::string& data = *response.mutable_data();
    data.resize(static_cast<size_t>(count * row_bytes));
    auto* bytes = reinterpret_cast<std::byte*>(data.data());
    if (!weight) {
      module.nf4->DequantizeRows(rows.first + row, {dtype, count, module.cols, bytes});
    } else if (weight->dtype == dtype) {
      std::copy_n(weight->Rows(rows.first + row, count).data, data.size(), bytes);
    } else {
      ConvertToF32(weight->dtype, weight->Rows(rows.first + row, count).data,
                   reinterpret_cast<float*>(bytes), count * module.cols);
    }
    RETURN_IF_ERROR(write(response));
    response.clear_dtype();
    response.clear_shape();
    row += count;
  } while (row < rows.count);
  return absl::OkStatus();
}

}  // namespace adapterd
