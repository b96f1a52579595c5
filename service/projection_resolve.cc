#include "service/projection_resolve.h"

#include <fmt/format.h>

#include "core/base/error.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

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

// What Merge and Forward can do and adding a delta to outputs cannot is refused.
absl::StatusOr<ResolvedTerm> ResolveDelta(const ProjectionPlan& plan,
                                          const ProjectionPlan::Module& module,
                                          const ResolvedModule& found, const AdapterRef& ref,
                                          const LoadedAdapter& adapter) {
  const ModuleInfo& info = *found.info;
  const ModuleExtras& extras = adapter.extras(found.index);
  if (info.kind == ModuleKind::kReplacement) {
    return Error(Reason::kUnsupportedAdapter,
                 fmt::format("module {} is replaced as a whole: merge it, there is no delta to add",
                             info.path));
  }
  ASSIGN_OR_RETURN(ResolvedTerm term,
                   ResolveTerm(plan, found, ref, adapter, extras.embedding_scale));
  if (info.has_magnitude) {
    ASSIGN_OR_RETURN(term.dora, ResolveDora(info, extras, module.base_output.has_value()));
  }
  return term;
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
    absl::StatusOr<ResolvedTerm> told = ResolveDelta(plan, module, *found, refs[i], *handles[i]);
    if (!told.ok()) return AboutModule(told.status(), module.field, refs[i], info);
    term = *std::move(told);
    // The width so far, from base_output or an earlier adapter, must be this one's too.
    if (resolved.out_features) {
      const std::string& field = module.base_output ? module.base_output_field : module.field;
      RETURN_IF_ERROR(CheckWidth("out_features", info.out_features, *resolved.out_features, field,
                                 refs[i], info));
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
