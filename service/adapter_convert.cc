#include "service/adapter_convert.h"

#include <fmt/format.h>

#include <cmath>

#include "core/base/error.h"
#include "core/base/name.h"
#include "core/base/status_macros.h"
#include "service/status_convert.h"
#include "service/tensor_convert.h"

namespace adapterd {
namespace {

constexpr size_t kDigestDigits = 64;
constexpr size_t kMaxQuotedBytes = 140;  // of a caller's text in a message

bool IsAlnum(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

absl::Status Invalid(const std::string& field, const std::string& expected,
                     const std::string& found) {
  const std::string clamped = ClampUtf8(found, kMaxQuotedBytes);
  return Error(Reason::kInvalidField,
               fmt::format("{}: expected {}, found \"{}\"", field, expected, clamped))
      .With("field", field)
      .With("expected", expected)
      .With("actual", clamped);
}

bool IsDigest(const std::string& text) {
  return text.size() == kDigestDigits &&
         text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// Letters, digits, '-', '_', '.'; begins and ends with a letter or digit (Kubernetes' syntax).
bool IsLabelWord(const std::string& text, const std::string& more = "") {
  if (text.empty() || !IsAlnum(text.front()) || !IsAlnum(text.back())) return false;
  for (char c : text) {
    if (!IsAlnum(c) && std::string("-_." + more).find(c) == std::string::npos) return false;
  }
  return true;
}

absl::Status CheckLabels(const google::protobuf::Map<std::string, std::string>& labels) {
  if (labels.size() > kMaxLabels) {
    return Invalid("labels", fmt::format("at most {} labels", kMaxLabels),
                   std::to_string(labels.size()));
  }
  for (const auto& [key, value] : labels) {
    if (key.size() > kMaxLabelKeyBytes || !IsLabelWord(key, "/")) {
      return Invalid("labels", "a key of letters, digits, '-', '_', '.' and '/'", key);
    }
    if (value.size() > kMaxLabelValueBytes || (!value.empty() && !IsLabelWord(value))) {
      return Invalid("labels",
                     fmt::format("a value of at most {} letters, digits, '-', '_' and '.'",
                                 kMaxLabelValueBytes),
                     value);
    }
  }
  return absl::OkStatus();
}

// All but the source.
template <typename Request>
absl::StatusOr<LoadRequest> ReadLoadOptions(const Request& request) {
  RETURN_IF_ERROR(CheckAdapterName(request.name(), "name"));
  if (!request.hosted_base().empty()) return NotImplemented("hosted_base");
  if (request.has_head_counts()) return NotImplemented("head_counts");
  if (!request.expected_digest().empty() && !IsDigest(request.expected_digest())) {
    return Invalid("expected_digest", "64 lower-case hex digits", request.expected_digest());
  }
  RETURN_IF_ERROR(CheckLabels(request.labels()));
  LoadRequest load;
  load.name = request.name();
  load.source = {"", request.base_model(), request.base_checkpoint()};
  load.expected_digest = request.expected_digest();
  load.pinned = request.pinned();
  load.labels = Labels(request.labels().begin(), request.labels().end());
  load.replace = request.replace();
  return load;
}

template <typename Request>
absl::StatusOr<LoadRequest> ReadLoadRequest(const Request& request) {
  ASSIGN_OR_RETURN(LoadRequest load, ReadLoadOptions(request));
  if (request.source().empty()) return Invalid("source", "a path below an adapter root", "");
  load.source.source = request.source();
  return load;
}

void SetTime(absl::Time time, google::protobuf::Timestamp& out) {
  const int64_t ns = absl::ToUnixNanos(time);
  out.set_seconds(ns / 1'000'000'000);
  out.set_nanos(static_cast<int32_t>(ns % 1'000'000'000));
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

void FillFromManifest(const AdapterManifest& manifest, v1::Adapter& out) {
  out.set_format(v1::ADAPTER_FORMAT_PEFT);
  out.set_method(manifest.method);
  out.set_base_model(manifest.base_model);
  for (int32_t rank : manifest.ranks()) out.add_ranks(rank);
  for (const std::string& target : manifest.target_modules()) out.add_target_modules(target);
  out.set_layer_count(manifest.layer_count());
  out.set_module_count(static_cast<int32_t>(manifest.modules.size()));
  const int64_t parameters = manifest.parameter_count();
  const int64_t original = manifest.original_parameter_count();
  out.set_parameter_count(parameters);
  out.set_original_parameter_count(original);
  if (parameters > 0) {
    out.set_compression_ratio(static_cast<double>(parameters) /
                              (static_cast<double>(original) + static_cast<double>(parameters)));
  }
  out.set_file_bytes(manifest.file_bytes);
  out.set_lora_dropout(manifest.lora_dropout);
}

}  // namespace

absl::Status NotImplemented(const std::string& field) {
  return Error(Reason::kNotImplemented, fmt::format("{} is not implemented", field))
      .With("field", field);
}

absl::Status CheckAdapterName(const std::string& name, const std::string& field) {
  if (IsName(name)) return absl::OkStatus();
  return Invalid(
      field, "1 to 128 letters, digits, '_', '.' and '-' that begin with a letter, digit or '_'",
      name);
}

absl::StatusOr<AdapterRef> RefFromProto(const v1::AdapterRef& ref, const std::string& field) {
  const size_t at = ref.name().find('@');
  if (at != std::string::npos && IsName(ref.name().substr(0, at)) &&
      IsName(ref.name().substr(at + 1))) {
    return NotImplemented(field + ".name with an alias");
  }
  RETURN_IF_ERROR(CheckAdapterName(ref.name(), field + ".name"));
  if (!ref.revision().empty() && !IsDigest(ref.revision())) {
    return Invalid(field + ".revision", "64 lower-case hex digits", ref.revision());
  }
  return AdapterRef{ref.name(), ref.revision()};
}

absl::StatusOr<double> WeightFromProto(const v1::AdapterRef& ref, const std::string& field) {
  const double weight = ref.has_weight() ? ref.weight() : 1.0;
  if (std::isfinite(weight)) return weight;
  return Invalid(field + ".weight", "a finite number", fmt::format("{}", weight));
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
  return ReadLoadRequest(request);
}

absl::StatusOr<LoadRequest> LoadRequestFromProto(const v1::ValidateAdapterRequest& request) {
  return ReadLoadRequest(request);
}

absl::StatusOr<LoadRequest> LoadRequestFromProto(const v1::UploadStart& start) {
  return ReadLoadOptions(start);
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
  out.set_enabled(true);
  out.set_etag(snapshot.etag);
  out.set_use_count(snapshot.use_count);
  out.set_in_flight(snapshot.in_flight);
  if (snapshot.load_time) {
    SetTime(*snapshot.load_time, *out.mutable_load_time());
    const int64_t ns = absl::ToInt64Nanoseconds(snapshot.load_duration);
    out.mutable_load_duration()->set_seconds(ns / 1'000'000'000);
    out.mutable_load_duration()->set_nanos(static_cast<int32_t>(ns % 1'000'000'000));
  }
  if (snapshot.last_use_time) SetTime(*snapshot.last_use_time, *out.mutable_last_use_time());
  for (const std::string& revision : snapshot.draining_revisions) {
    out.add_draining_revisions(revision);
  }
  if (!snapshot.error.ok()) {
    out.mutable_error()->set_reason(
        std::string(ReasonName(GetErrorDetails(snapshot.error).reason)));
    out.mutable_error()->set_message(std::string(snapshot.error.message()));
  }
  for (const std::string& warning : snapshot.warnings) {
    out.add_warnings(ClampUtf8(warning, kMaxErrorMessageBytes));
  }
  if (snapshot.manifest == nullptr) return;
  FillFromManifest(*snapshot.manifest, out);
  if (view != v1::ADAPTER_VIEW_FULL && only == nullptr) return;
  if (only != nullptr) {
    for (size_t i : *only) AddModule(snapshot.manifest->modules[i], out);
    return;
  }
  for (const ModuleInfo& module : snapshot.manifest->modules) AddModule(module, out);
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
