#include "service/projection_resolve.h"

#include <fmt/format.h>

#include "core/base/error.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

absl::Status About(absl::Status status, const std::string& field, const AdapterRef& ref,
                   const ModuleInfo& info) {
  status = Annotate(std::move(status), "field", field);
  return Annotate(Annotate(std::move(status), "adapter", ref.name), "module", info.path);
}

absl::Status CheckWidth(const char* what, int64_t expected, int64_t actual,
                        const std::string& field, const AdapterRef& ref, const ModuleInfo& info) {
  if (expected == actual) return absl::OkStatus();
  return About(Error(Reason::kShapeMismatch,
                     fmt::format("{}: module {} of adapter \"{}\" has {} {}, found {}", field,
                                 info.path, ref.name, what, expected, actual))
                   .With("expected", expected)
                   .With("actual", actual),
               field, ref, info);
}

// What Merge can do and adding a delta to outputs cannot.
absl::Status CheckKind(const ModuleInfo& info) {
  if (info.kind == ModuleKind::kReplacement) {
    return Error(Reason::kUnsupportedAdapter,
                 fmt::format("module {} is replaced as a whole: merge it, there is no delta to add",
                             info.path));
  }
  if (info.kernel_elements > 1) {
    return Error(Reason::kUnsupportedAdapter,
                 fmt::format("module {} is a convolution of {} elements: merge it, a projection of "
                             "rows cannot apply it",
                             info.path, info.kernel_elements));
  }
  return absl::OkStatus();
}

// Embeddings take ids below their size, everything else takes activations of its width.
absl::Status CheckInput(const ProjectionPlan& plan, const ModuleInfo& info, const AdapterRef& ref) {
  if (info.kind != ModuleKind::kEmbedding) {
    if (plan.floats() != nullptr) {
      return CheckWidth("in_features", info.in_features, plan.in_features, "input", ref, info);
    }
    return Error(Reason::kUnsupportedDtype,
                 fmt::format("input: module {} takes floats, found integers", info.path))
        .With("field", "input");
  }
  if (plan.ids() == nullptr) {
    return Error(Reason::kUnsupportedDtype,
                 fmt::format("input: module {} is an embedding and takes token ids (I32 or I64), "
                             "found floats",
                             info.path))
        .With("field", "input");
  }
  for (const int64_t id : plan.ids()->values()) {
    if (id >= 0 && id < info.in_features) continue;
    return Error(Reason::kInvalidField,
                 fmt::format("input: module {} has ids from 0 to {}, found {}", info.path,
                             info.in_features - 1, id))
        .With("field", "input")
        .With("expected", info.in_features)
        .With("actual", id);
  }
  return absl::OkStatus();
}

absl::StatusOr<DoraRescale> ResolveDora(const ModuleInfo& info, const ModuleExtras& extras,
                                        bool has_base_output) {
  if (!extras.dora || !has_base_output) {
    return Error(
        Reason::kBaseRequired,
        fmt::format("module {} is DoRA, which rescales the base model's output: {}", info.path,
                    extras.dora ? "give base_output" : "load the adapter with base_checkpoint"));
  }
  const std::vector<float>& bias = extras.dora->base_bias;
  return DoraRescale{extras.dora->gain.data(), bias.empty() ? nullptr : bias.data()};
}

absl::StatusOr<ResolvedTerm> ResolveTerm(const ProjectionPlan& plan,
                                         const ProjectionPlan::Module& module,
                                         const ResolvedModule& found, const AdapterRef& ref,
                                         const LoadedAdapter& adapter) {
  const ModuleInfo& info = *found.info;
  const ModuleExtras& extras = adapter.extras(found.index);
  RETURN_IF_ERROR(CheckKind(info));
  RETURN_IF_ERROR(CheckInput(plan, info, ref));
  ResolvedTerm term;
  term.module = found;
  term.factor = info.scale;
  if (info.kind == ModuleKind::kEmbedding) {
    if (!extras.embedding_scale) {
      return Error(Reason::kBaseRequired,
                   fmt::format("the base model of module {} may scale its embeddings: load the "
                               "adapter with base_checkpoint",
                               info.path));
    }
    term.factor *= *extras.embedding_scale;
  }
  if (info.has_lora_bias) term.bias = extras.lora_bias_f32.data();
  if (info.has_magnitude) {
    ASSIGN_OR_RETURN(term.dora, ResolveDora(info, extras, module.base_output.has_value()));
  }
  if (info.pairs() > 0) {
    ASSIGN_OR_RETURN(term.pair, adapter.Pair(found.index, found.pair, plan.input_dtype()));
  }
  return term;
}

// DoRA rescales what the base model and nobody else put out.
absl::Status CheckDora(const ResolvedTerm& term, double weight, size_t terms,
                       const std::string& field, const AdapterRef& ref) {
  if (!term.dora || (weight == 1 && terms == 1)) return absl::OkStatus();
  const ModuleInfo& info = *term.module.info;
  return About(Error(Reason::kInvalidField,
                     fmt::format("{}: adapter \"{}\" is DoRA on module {}, which goes {}", field,
                                 ref.name, info.path,
                                 weight == 1 ? "with no other adapter in its segment"
                                             : "with weight 1 alone")),
               field, ref, info);
}

}  // namespace

absl::StatusOr<ResolvedProjection> ResolveProjection(const ProjectionPlan& plan,
                                                     const ProjectionPlan::Module& module,
                                                     const std::vector<AdapterHandle>& handles) {
  ResolvedProjection resolved;
  if (module.base_output) resolved.out_features = module.base_output->shape().back();
  const std::vector<AdapterRef>& refs = plan.adapters.refs();
  for (size_t i = 0; i < refs.size(); ++i) {
    ASSIGN_OR_RETURN(auto found, ResolveModule(handles[i], refs[i], module.selector, module.field,
                                               plan.skip_untargeted));
    std::optional<ResolvedTerm>& term = resolved.by_ref.emplace_back();
    if (!found) continue;
    const ModuleInfo& info = *found->info;
    absl::StatusOr<ResolvedTerm> told = ResolveTerm(plan, module, *found, refs[i], *handles[i]);
    if (!told.ok()) return About(told.status(), module.field, refs[i], info);
    term = *std::move(told);
    // The width so far, from base_output or an earlier adapter, must be this one's too.
    if (resolved.out_features) {
      RETURN_IF_ERROR(CheckWidth("out_features", info.out_features, *resolved.out_features,
                                 module.field, refs[i], info));
    }
    resolved.out_features = info.out_features;
    if (resolved.path.empty()) resolved.path = info.path;
  }
  return resolved;
}

absl::StatusOr<std::vector<ProjectionSegment>> ResolveSegments(const ProjectionPlan& plan,
                                                               const std::string& field,
                                                               const ResolvedProjection& resolved,
                                                               std::vector<bool>& used,
                                                               int32_t& applied) {
  std::vector<ProjectionSegment> segments;
  segments.reserve(plan.segments.size());
  for (const ProjectionPlan::Segment& segment : plan.segments) {
    ProjectionSegment& out = segments.emplace_back();
    out.rows = segment.rows;
    for (const AdapterRefs::Use& use : segment.uses) {
      const std::optional<ResolvedTerm>& term = resolved.by_ref[use.ref];
      if (!term) continue;
      used[use.ref] = true;
      ++applied;
      if (term->pair == nullptr) continue;
      out.terms.push_back(
          {term->pair, use.weight * term->factor, term->bias, term->dora ? &*term->dora : nullptr});
    }
    for (const AdapterRefs::Use& use : segment.uses) {
      const std::optional<ResolvedTerm>& term = resolved.by_ref[use.ref];
      if (!term) continue;
      RETURN_IF_ERROR(
          CheckDora(*term, use.weight, out.terms.size(), field, plan.adapters.refs()[use.ref]));
    }
  }
  return segments;
}

}  // namespace adapterd
