#include "service/term_resolve.h"

#include <fmt/format.h>

#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"

namespace adapterd {

absl::Status AboutModule(absl::Status status, const std::string& field, const AdapterRef& ref,
                         const ModuleInfo& info) {
  status = Annotate(std::move(status), "field", field);
  return Annotate(Annotate(std::move(status), "adapter", ref.name), "module", info.path);
}

absl::Status CheckWidth(const char* what, int64_t expected, int64_t actual,
                        const std::string& field, const AdapterRef& ref, const ModuleInfo& info) {
  if (expected == actual) return absl::OkStatus();
  return AboutModule(Error(Reason::kShapeMismatch,
                           fmt::format("{}: module {} of adapter \"{}\" has {} {}, found {}", field,
                                       info.path, ref.name, what, expected, actual))
                         .With("expected", expected)
                         .With("actual", actual),
                     field, ref, info);
}

absl::Status CheckInputKind(const InputPlan& plan, bool is_embedding, const std::string& path) {
  if (is_embedding == (plan.ids() != nullptr)) return absl::OkStatus();
  return Error(Reason::kUnsupportedDtype,
               is_embedding
                   ? fmt::format("input: module {} is an embedding and takes token ids (I32 or "
                                 "I64), found floats",
                                 path)
                   : fmt::format("input: module {} takes floats, found integers", path))
      .With("field", "input");
}

absl::Status CheckIds(std::span<const int64_t> values, int64_t ids, const std::string& path) {
  for (const int64_t id : values) {
    if (id >= 0 && id < ids) continue;
    return Error(Reason::kInvalidField,
                 fmt::format("input: module {} has ids from 0 to {}, found {}", path, ids - 1, id))
        .With("field", "input")
        .With("expected", ids)
        .With("actual", id);
  }
  return absl::OkStatus();
}

absl::StatusOr<ResolvedTerm> ResolveTerm(const InputPlan& plan, const ResolvedModule& found,
                                         const AdapterRef& ref, const LoadedAdapter& adapter,
                                         std::optional<double> embedding_scale) {
  const ModuleInfo& info = *found.info;
  if (info.kernel_elements > 1) {
    return Error(Reason::kUnsupportedAdapter,
                 fmt::format("module {} is a convolution of {} elements: merge it, a projection of "
                             "rows cannot apply it",
                             info.path, info.kernel_elements));
  }
  const bool is_embedding = info.kind == ModuleKind::kEmbedding;
  RETURN_IF_ERROR(CheckInputKind(plan, is_embedding, info.path));
  ResolvedTerm term;
  term.module = found;
  term.factor = info.scale;
  if (is_embedding) {
    RETURN_IF_ERROR(CheckIds(plan.ids()->values(), info.in_features, info.path));
    if (!embedding_scale) {
      return Error(Reason::kBaseRequired,
                   fmt::format("the base model of module {} may scale its embeddings: load the "
                               "adapter with base_checkpoint",
                               info.path));
    }
    term.factor *= *embedding_scale;
  } else {
    RETURN_IF_ERROR(
        CheckWidth("in_features", info.in_features, plan.in_features, "input", ref, info));
  }
  if (info.has_lora_bias) term.bias = adapter.extras(found.index).lora_bias_f32.data();
  if (info.pairs() > 0) {
    ASSIGN_OR_RETURN(term.pair, adapter.Pair(found.index, found.pair, plan.input_dtype()));
  }
  return term;
}

absl::Status CheckDora(const ResolvedTerm& term, double weight, size_t terms,
                       const std::string& field, const AdapterRef& ref) {
  if (!term.dora || (weight == 1 && terms == 1)) return absl::OkStatus();
  const ModuleInfo& info = *term.module.info;
  return AboutModule(Error(Reason::kInvalidField,
                           fmt::format("{}: adapter \"{}\" is DoRA on module {}, which goes {}",
                                       field, ref.name, info.path,
                                       weight == 1 ? "with no other adapter in its segment"
                                                   : "with weight 1 alone")),
                     field, ref, info);
}

}  // namespace adapterd
