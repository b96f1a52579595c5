#include "service/adapter_convert.h"

#include <fmt/format.h>

#include <cmath>

#include "core/adapter/base_model_geometry.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/labels.h"
#include "service/status_convert.h"
#include "service/tensor_convert.h"

namespace adapterd {
namespace {

// Grouped-query attention shares each key-value head among as many query heads.
absl::StatusOr<HeadCounts> HeadCountsFromProto(const v1::HeadCounts& proto,
                                               const std::string& field) {
  const HeadCounts counts = {proto.num_attention_heads(), proto.num_key_value_heads()};
  const auto in_range = [](int64_t count) { return count > 0 && count <= kMaxGeometrySize; };
  if (!in_range(counts.num_attention_heads)) {
    return FieldError(field + ".num_attention_heads",
                      fmt::format("a number from 1 to {}", kMaxGeometrySize),
                      std::to_string(counts.num_attention_heads));
  }
  if (in_range(counts.num_key_value_heads) &&
      counts.num_attention_heads % counts.num_key_value_heads == 0) {
    return counts;
  }
  return FieldError(field + ".num_key_value_heads", "a divisor of num_attention_heads",
                    std::to_string(counts.num_key_value_heads));
}

// AdapterSpec and its relatives have the same fields; an upload has no source, and only a load may
// replace. `prefix` goes before the fields' names in errors.
template <typename Spec>
absl::StatusOr<LoadRequest> ReadLoadRequest(const Spec& spec, const std::string& prefix) {
  RETURN_IF_ERROR(CheckAdapterName(spec.name(), prefix + "name"));
  if (!spec.hosted_base().empty()) {
    RETURN_IF_ERROR(CheckAdapterName(spec.hosted_base(), prefix + "hosted_base"));
    if (!spec.base_checkpoint().empty()) {
      return FieldError(prefix + "hosted_base", "nothing beside base_checkpoint",
                        spec.hosted_base());
    }
  }
  if (!spec.expected_digest().empty()) {
    RETURN_IF_ERROR(CheckDigest(spec.expected_digest(), prefix + "expected_digest"));
  }
  LoadRequest load;
  load.name = spec.name();
  load.source.base_model = spec.base_model();
  load.source.base_checkpoint = spec.base_checkpoint();
  load.source.hosted_base = spec.hosted_base();
  if (spec.has_head_counts()) {
    ASSIGN_OR_RETURN(load.source.head_counts,
                     HeadCountsFromProto(spec.head_counts(), prefix + "head_counts"));
  }
  load.expected_digest = spec.expected_digest();
  load.pinned = spec.pinned();
  ASSIGN_OR_RETURN(load.labels, LabelsFromProto(spec.labels(), prefix + "labels"));
  if constexpr (requires { spec.source(); }) {
    if (spec.source().empty()) {
      return FieldError(prefix + "source", "a path below an adapter root", "");
    }
    load.source.source = spec.source();
  }
  if constexpr (requires { spec.replace(); }) load.replace = spec.replace();
  return load;
}

v1::AdapterFormat ToProto(AdapterFormat format) {
  switch (format) {
    case AdapterFormat::kPeft:
      return v1::ADAPTER_FORMAT_PEFT;
    case AdapterFormat::kGguf:
      return v1::ADAPTER_FORMAT_GGUF;
    case AdapterFormat::kMlx:
      return v1::ADAPTER_FORMAT_MLX;
    case AdapterFormat::kKohya:
      return v1::ADAPTER_FORMAT_KOHYA;
    case AdapterFormat::kDiffusers:
      return v1::ADAPTER_FORMAT_DIFFUSERS;
    case AdapterFormat::kCreated:
      return v1::ADAPTER_FORMAT_CREATED;
  }
  return v1::ADAPTER_FORMAT_UNSPECIFIED;
}

v1::ModuleKind ToProto(ModuleKind kind) {
  switch (kind) {
    case ModuleKind::kLinear:
      return v1::MODULE_KIND_LINEAR;
    case ModuleKind::kEmbedding:
      return v1::MODULE_KIND_EMBEDDING;
    case ModuleKind::kConv:
      return v1::MODULE_KIND_CONV;
    case ModuleKind::kExperts:
      return v1::MODULE_KIND_EXPERTS;
    default:
      return v1::MODULE_KIND_REPLACEMENT;
  }
}

void AddModule(const ModuleInfo& module, v1::Adapter& out) {
  v1::AdapterModule* proto = out.add_modules();
  proto->set_path(module.path);
  if (const auto layer = LayerOf(module.path)) proto->set_layer(*layer);
  proto->set_target(std::string(TargetOf(module.path)));
  proto->set_kind(ToProto(module.kind));
  proto->set_in_features(module.in_features);
  proto->set_out_features(module.out_features);
  proto->set_rank(module.rank);
  proto->set_experts(module.experts);
  proto->set_alpha(module.alpha);
  proto->set_scale(module.scale);
  proto->set_dtype(
      ToProto(module.kind == ModuleKind::kReplacement ? module.weight_dtype : module.lora_a_dtype));
  proto->set_has_lora_bias(module.has_lora_bias);
  proto->set_replaces_bias(module.replaces_bias);
  proto->set_has_magnitude(module.has_magnitude);
  proto->set_lora_a_tensor(module.lora_a_tensor);
  proto->set_lora_b_tensor(module.lora_b_tensor);
}

void FillDescription(const AdapterDescription& description, v1::Adapter& out) {
  out.set_format(ToProto(description.format));
  out.set_method(description.method);
  out.set_base_model(description.base_model);
  out.mutable_ranks()->Add(description.ranks.begin(), description.ranks.end());
  out.mutable_target_modules()->Add(description.target_modules.begin(),
                                    description.target_modules.end());
  out.set_layer_count(description.layer_count);
  out.set_module_count(description.module_count);
  const int64_t parameters = description.parameter_count;
  const int64_t original = description.original_parameter_count;
  out.set_parameter_count(parameters);
  out.set_original_parameter_count(original);
  if (parameters > 0) {
    out.set_compression_ratio(static_cast<double>(parameters) /
                              (static_cast<double>(original) + static_cast<double>(parameters)));
  }
  out.set_file_bytes(description.file_bytes);
  out.set_lora_dropout(description.lora_dropout);
}

void FillError(const absl::Status& status, v1::AdapterError& out) {
  out.set_reason(std::string(ReasonName(GetErrorDetails(status).reason)));
  out.set_message(ClampUtf8(std::string(status.message()), kMaxErrorMessageBytes));
}

}  // namespace

absl::StatusOr<AdapterRef> RefFromProto(const v1::AdapterRef& ref, const std::string& field) {
  AdapterRef out{ref.name(), ref.revision()};
  const size_t at = out.name.find('@');
  if (at == std::string::npos) {
    RETURN_IF_ERROR(CheckAdapterName(out.name, field + ".name"));
  } else {
    out.alias = out.name.substr(at + 1);
    out.name.resize(at);
    if (!CheckAdapterName(out.name, field).ok() || !CheckAdapterName(out.alias, field).ok()) {
      return FieldError(field + ".name",
                        "NAME or NAME@ALIAS, each of 1 to 128 letters, digits, '_', '.' and '-' "
                        "that begin with a letter, digit or '_'",
                        ref.name());
    }
  }
  if (!out.revision.empty()) RETURN_IF_ERROR(CheckDigest(out.revision, field + ".revision"));
  return out;
}

absl::StatusOr<double> WeightFromProto(const v1::AdapterRef& ref, const std::string& field) {
  const double weight = ref.has_weight() ? ref.weight() : 1.0;
  if (std::isfinite(weight)) return weight;
  return FieldError(field + ".weight", "a finite number", fmt::format("{}", weight));
}

absl::StatusOr<ModuleSelector> SelectorFromProto(const v1::ModuleSelector& selector,
                                                 const std::string& field) {
  ModuleSelector out{selector.path(), selector.target(), std::nullopt, std::nullopt};
  if (selector.has_layer()) out.layer = selector.layer();
  if (selector.has_expert()) out.expert = selector.expert();
  RETURN_IF_ERROR(Annotate(CheckSelector(out), "field", field));
  return out;
}

absl::StatusOr<LoadRequest> LoadRequestFromProto(const v1::LoadAdapterRequest& request) {
  RETURN_IF_ERROR(CheckView(request.view()));
  return ReadLoadRequest(request, "");
}

absl::StatusOr<LoadRequest> LoadRequestFromProto(const v1::ValidateAdapterRequest& request) {
  RETURN_IF_ERROR(CheckView(request.view()));
  return ReadLoadRequest(request, "");
}

absl::StatusOr<LoadRequest> LoadRequestFromProto(const v1::UploadStart& start) {
  return ReadLoadRequest(start, "start.");
}

absl::StatusOr<LoadRequest> LoadRequestFromProto(const v1::AdapterSpec& spec,
                                                 const std::string& field) {
  return ReadLoadRequest(spec, field + ".");
}

absl::Status CheckView(v1::AdapterView view) {
  if (v1::AdapterView_IsValid(view)) return absl::OkStatus();
  return FieldError("view", "BASIC or FULL", fmt::format("{}", static_cast<int>(view)));
}

void TimeToProto(absl::Time time, google::protobuf::Timestamp& out) {
  const int64_t ns = absl::ToUnixNanos(time);
  out.set_seconds(ns / 1'000'000'000);
  out.set_nanos(static_cast<int32_t>(ns % 1'000'000'000));
}

v1::AdapterState ToProto(AdapterState state) {
  switch (state) {
    case AdapterState::kLoading:
      return v1::ADAPTER_STATE_LOADING;
    case AdapterState::kReady:
      return v1::ADAPTER_STATE_READY;
    case AdapterState::kEvicted:
      return v1::ADAPTER_STATE_EVICTED;
    default:
      return v1::ADAPTER_STATE_FAILED;
  }
}

void ToProto(const AdapterSnapshot& snapshot, v1::AdapterView view, v1::Adapter& out,
             const std::vector<size_t>* only) {
  out.set_name(snapshot.name);
  out.set_public_id(snapshot.public_id);
  out.set_revision(snapshot.digest.revision);
  out.set_weights_sha256(snapshot.digest.weights_sha256);
  out.set_state(ToProto(snapshot.state));
  out.set_source(snapshot.source);
  out.set_memory_bytes(snapshot.memory_bytes);
  out.mutable_labels()->insert(snapshot.labels.begin(), snapshot.labels.end());
  out.set_pinned(snapshot.pinned);
  out.set_enabled(snapshot.enabled);
  out.set_etag(snapshot.etag);
  out.set_use_count(snapshot.use_count);
  out.set_in_flight(snapshot.in_flight);
  if (snapshot.load_time) {
    TimeToProto(*snapshot.load_time, *out.mutable_load_time());
    const int64_t ns = absl::ToInt64Nanoseconds(snapshot.load_duration);
    out.mutable_load_duration()->set_seconds(ns / 1'000'000'000);
    out.mutable_load_duration()->set_nanos(static_cast<int32_t>(ns % 1'000'000'000));
  }
  if (snapshot.last_use_time) TimeToProto(*snapshot.last_use_time, *out.mutable_last_use_time());
  out.mutable_draining_revisions()->Add(snapshot.draining_revisions.begin(),
                                        snapshot.draining_revisions.end());
  out.mutable_aliases()->insert(snapshot.aliases.begin(), snapshot.aliases.end());
  out.mutable_kept_revisions()->Add(snapshot.kept_revisions.begin(), snapshot.kept_revisions.end());
  if (!snapshot.error.ok()) FillError(snapshot.error, *out.mutable_error());
  for (const std::string& warning : snapshot.warnings) {
    out.add_warnings(ClampUtf8(warning, kMaxErrorMessageBytes));
  }
  if (snapshot.description != nullptr) FillDescription(*snapshot.description, out);
  if (snapshot.manifest == nullptr) return;
  if (only != nullptr) {
    for (size_t i : *only) AddModule(snapshot.manifest->modules[i], out);
  } else if (view == v1::ADAPTER_VIEW_FULL) {
    for (const ModuleInfo& module : snapshot.manifest->modules) AddModule(module, out);
  }
}

void ToProto(const Problem& problem, v1::Problem& out) {
  out.set_severity(problem.severity == Severity::kError ? v1::SEVERITY_ERROR
                                                        : v1::SEVERITY_WARNING);
  out.set_reason(std::string(ReasonName(problem.reason)));
  out.set_message(ClampUtf8(problem.message, kMaxErrorMessageBytes));
  out.set_file(ClampUtf8(problem.file, kMaxErrorMessageBytes));
  out.set_tensor(ClampUtf8(problem.tensor, kMaxErrorMessageBytes));
  out.set_module(ClampUtf8(problem.module, kMaxErrorMessageBytes));
  out.set_field(ClampUtf8(problem.field, kMaxErrorMessageBytes));
}

}  // namespace adapterd
