#include "service/forward_resolve.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

std::vector<float> ToF32(const MatrixView& bias) {
  std::vector<float> values(bias.data == nullptr ? 0 : bias.cols);
  if (!values.empty()) ConvertToF32(bias.dtype, bias.data, values.data(), bias.cols);
  return values;
}

MatrixView AsRow(const Tensor& bias) {
  return {bias.dtype(), 1, bias.shape()[0], bias.bytes().data()};
}

class Resolver {
 public:
  Resolver(const ForwardPlan& plan, const std::vector<AdapterHandle>& handles,
           ResolvedForward& resolved)
      : plan_(plan), handles_(handles), resolved_(resolved) {}

  absl::Status ResolveAdapters();
  absl::Status ResolveSegments();

 private:
  using Use = AdapterRefs::Use;

  const AdapterRef& Ref(size_t ref) const { return plan_.adapters.refs()[ref]; }
  const ForwardModule& module() const { return resolved_.module; }
  absl::Status About(const absl::Status& status, size_t ref) const {
    return Annotate(Annotate(Annotate(status, "field", "module"), "adapter", Ref(ref).name),
                    "module", module().path());
  }
  // About an adapter that replaces the module.
  absl::Status Invalid(size_t ref, const std::string& why) const {
    return About(Error(Reason::kInvalidField, fmt::format("adapter \"{}\" replaces module {}{}",
                                                          Ref(ref).name, module().path(), why)),
                 ref);
  }

  absl::Status ResolveAdapter(size_t ref, const ResolvedModule& found, ForwardAdapter& adapter);
  absl::Status ReadReplacement(size_t ref, const ResolvedModule& found, ForwardAdapter& adapter);
  absl::Status ReadReplacedWeight(const ModuleInfo& info, const Tensor& weight,
                                  ForwardAdapter& adapter);
  absl::Status SetLayout(const ModuleInfo& info, size_t ref);
  absl::Status CheckMerged(const Use& use, const MergedAdapter& merged) const;
  // The one adapter of the segment that replaces the module; nullptr: none does.
  absl::StatusOr<const Use*> FindReplacing(const InputPlan::Segment& segment) const;
  absl::Status AddRun(const InputPlan::Segment& segment, const Use* replacing);
  absl::Status AddTerms(const InputPlan::Segment& segment, int64_t first_row);
  void NeedDora(size_t ref, const BaseRun& run);

  const ForwardPlan& plan_;
  const std::vector<AdapterHandle>& handles_;
  ResolvedForward& resolved_;
  std::optional<size_t> layout_from_;     // the adapter that told the weight's layout
  std::optional<size_t> last_replacing_;  // whose weight the last run has
};

absl::Status Resolver::SetLayout(const ModuleInfo& info, size_t ref) {
  const bool fan_in_fan_out = handles_[ref].manifest().peft.fan_in_fan_out;
  ASSIGN_OR_RETURN(const WeightLayout layout, LayoutFor(module(), info, fan_in_fan_out));
  if (layout_from_ && layout != module().weight.layout) {
    return Error(Reason::kInvalidField,
                 fmt::format("adapters \"{}\" and \"{}\" take the weight of module {} for the "
                             "transposes of each other",
                             Ref(*layout_from_).name, Ref(ref).name, module().path()));
  }
  resolved_.module.weight.layout = layout;
  layout_from_ = ref;
  return absl::OkStatus();
}

absl::Status Resolver::ReadReplacedWeight(const ModuleInfo& info, const Tensor& weight,
                                          ForwardAdapter& adapter) {
  const StoredWeight& base = module().weight;
  if (!info.token_ids.empty()) {
    adapter.weight = base;
    for (size_t i = 0; i < info.token_ids.size(); ++i) {
      adapter.rows.push_back({info.token_ids[i], static_cast<int64_t>(i)});
    }
    std::ranges::sort(adapter.rows, {}, &ReplacedRow::row);
    adapter.weight->replaced = adapter.rows;
    adapter.weight->replacement = AsMatrix(weight);
    if (adapter.rows.back().row < base.rows() && adapter.weight->replacement.cols == base.cols()) {
      return absl::OkStatus();
    }
  } else {
    ASSIGN_OR_RETURN(const MatrixView matrix,
                     MatrixOfWeight(weight.dtype(), info.weight_shape, weight.bytes().data(),
                                    module().snapshot.module->is_parameter, plan_.selector.expert,
                                    module().path()));
    adapter.weight = StoredWeight{matrix, base.layout};
    // Vocabularies may be resized, which are the rows of embeddings and heads.
    if (matrix.cols == base.cols()) return absl::OkStatus();
  }
  return Error(Reason::kShapeMismatch,
               fmt::format("the weight that replaces module {} has shape {}, the base model's {}",
                           module().path(), ShapeString(info.weight_shape),
                           ShapeString(module().snapshot.module->shape)))
      .With("expected", ShapeString(module().snapshot.module->shape))
      .With("actual", ShapeString(info.weight_shape));
}

absl::Status Resolver::ReadReplacement(size_t ref, const ResolvedModule& found,
                                       ForwardAdapter& adapter) {
  const std::vector<ModuleInfo>& modules = handles_[ref].manifest().modules;
  for (size_t i = found.index; i < modules.size() && modules[i].path == found.info->path; ++i) {
    const ModuleExtras& extras = handles_[ref]->extras(i);
    if (!extras.weight.bytes().empty()) {
      RETURN_IF_ERROR(ReadReplacedWeight(modules[i], extras.weight, adapter));
    }
    if (modules[i].replaces_bias) adapter.bias = &extras.bias;
  }
  return absl::OkStatus();
}

absl::Status Resolver::ResolveAdapter(size_t ref, const ResolvedModule& found,
                                      ForwardAdapter& adapter) {
  const ModuleInfo& info = *found.info;
  if (info.kind != ModuleKind::kReplacement) RETURN_IF_ERROR(SetLayout(info, ref));
  adapter.merged = module().FindMerged(Ref(ref).name);
  if (adapter.merged != nullptr) return absl::OkStatus();
  RETURN_IF_ERROR(ReadReplacement(ref, found, adapter));
  if (adapter.replaces() && module().snapshot.merged != nullptr) {
    return Invalid(ref, ", into which others are merged");
  }
  if (info.kind == ModuleKind::kReplacement) return absl::OkStatus();
  ASSIGN_OR_RETURN(adapter.term,
                   ResolveTerm(plan_, found, Ref(ref), *handles_[ref], module().embedding_scale));
  if (info.has_magnitude) adapter.term->dora.emplace();
  return absl::OkStatus();
}

absl::Status Resolver::ResolveAdapters() {
  resolved_.by_ref.resize(handles_.size());
  resolved_.used.assign(handles_.size(), false);
  for (size_t i = 0; i < handles_.size(); ++i) {
    ASSIGN_OR_RETURN(const auto found, FindInAdapter(plan_, module(), handles_[i], Ref(i)));
    if (!found) continue;
    const absl::Status status = ResolveAdapter(i, *found, resolved_.by_ref[i].emplace());
    if (!status.ok()) return About(status, i);
  }
  return absl::OkStatus();
}

absl::Status Resolver::CheckMerged(const Use& use, const MergedAdapter& merged) const {
  const std::string& revision = handles_[use.ref]->revision();
  if (revision == merged.revision && use.weight == merged.weight) return absl::OkStatus();
  return About(Error(Reason::kMergedRevision,
                     fmt::format("revision {} of adapter \"{}\" is merged into module {} with "
                                 "weight {}, asked for is revision {} with weight {}",
                                 merged.revision, merged.name, module().path(), merged.weight,
                                 revision, use.weight))
                   .With("expected", merged.revision)
                   .With("actual", revision),
               use.ref);
}

absl::StatusOr<const AdapterRefs::Use*> Resolver::FindReplacing(
    const InputPlan::Segment& segment) const {
  const Use* replacing = nullptr;
  for (const Use& use : segment.uses) {
    const std::optional<ForwardAdapter>& adapter = resolved_.by_ref[use.ref];
    if (!adapter || !adapter->replaces()) continue;
    if (replacing != nullptr) {
      return Invalid(use.ref,
                     fmt::format(", as \"{}\" does in the same segment", Ref(replacing->ref).name));
    }
    if (use.weight != 1) return Invalid(use.ref, ", which goes with weight 1 alone");
    replacing = &use;
  }
  return replacing;
}

absl::Status Resolver::AddRun(const InputPlan::Segment& segment, const Use* replacing) {
  const std::optional<size_t> ref =
      replacing == nullptr ? std::nullopt : std::optional<size_t>(replacing->ref);
  if (!resolved_.runs.empty() && ref == last_replacing_) {
    resolved_.runs.back().rows += segment.rows;
    return absl::OkStatus();
  }
  last_replacing_ = ref;
  BaseRun run = {segment.rows, module().weight, module().bias, module().embedding_scale};
  if (ref) {
    const ForwardAdapter& adapter = *resolved_.by_ref[*ref];
    if (adapter.weight) run.weight = *adapter.weight;
    run.weight.layout = module().weight.layout;  // which another adapter may have told since
    if (adapter.bias != nullptr) run.bias = AsRow(*adapter.bias);
  }
  const int64_t out = run.weight.out_features();
  const int64_t in = run.weight.in_features();
  const bool is_first = resolved_.runs.empty();
  if (plan_.ids() == nullptr && in != plan_.in_features) {
    return Error(Reason::kShapeMismatch,
                 fmt::format("input: module {} of the base model has in_features {}, found {}",
                             module().path(), in, plan_.in_features))
        .With("field", "input")
        .With("expected", in)
        .With("actual", plan_.in_features);
  }
  if ((!is_first && out != resolved_.out_features) ||
      (run.bias.data != nullptr && run.bias.cols != out)) {
    return Error(Reason::kShapeMismatch,
                 fmt::format("module {} has {} outputs in one segment or its weight, and {} in "
                             "another or its bias",
                             module().path(), is_first ? out : resolved_.out_features,
                             is_first ? run.bias.cols : out));
  }
  resolved_.out_features = out;
  resolved_.runs.push_back(run);
  return absl::OkStatus();
}

void Resolver::NeedDora(size_t ref, const BaseRun& run) {
  const auto is_it = [ref](const DoraNeed& need) { return need.ref == ref; };
  if (std::ranges::any_of(resolved_.dora, is_it)) return;
  ForwardAdapter& adapter = *resolved_.by_ref[ref];
  adapter.dora_bias = ToF32(run.bias);
  if (!adapter.dora_bias.empty()) adapter.term->dora->base_bias = adapter.dora_bias.data();
  resolved_.dora.push_back({ref, run.weight});
}

absl::Status Resolver::AddTerms(const InputPlan::Segment& segment, int64_t first_row) {
  ProjectionSegment& out = resolved_.segments.emplace_back();
  out.rows = segment.rows;
  size_t contributing = 0;
  for (const Use& use : segment.uses) {
    std::optional<ForwardAdapter>& adapter = resolved_.by_ref[use.ref];
    if (!adapter) continue;
    resolved_.used[use.ref] = true;
    if (adapter->merged != nullptr) {
      RETURN_IF_ERROR(CheckMerged(use, *adapter->merged));
      continue;
    }
    ++contributing;
    if (!adapter->term || adapter->term->pair == nullptr) continue;
    const ResolvedTerm& term = *adapter->term;
    if (term.pair->shape().out_features != resolved_.out_features) {
      return AboutModule(
          CheckWidth("out_features", term.pair->shape().out_features, resolved_.out_features,
                     "module", Ref(use.ref), *term.module.info),
          "module", Ref(use.ref), *term.module.info);
    }
    out.terms.push_back(
        {term.pair, use.weight * term.factor, term.bias, term.dora ? &*term.dora : nullptr});
    if (term.dora) NeedDora(use.ref, resolved_.runs.back());
  }
  for (const Use& use : segment.uses) {
    const std::optional<ForwardAdapter>& adapter = resolved_.by_ref[use.ref];
    if (!adapter || !adapter->term) continue;
    RETURN_IF_ERROR(CheckDora(*adapter->term, use.weight, contributing, "module", Ref(use.ref)));
  }
  if (plan_.ids() == nullptr) return absl::OkStatus();
  const auto ids = std::span(plan_.ids()->values()).subspan(first_row, segment.rows);
  return CheckIds(ids, resolved_.runs.back().weight.rows(), module().path());
}

absl::Status Resolver::ResolveSegments() {
  int64_t row = 0;
  for (const InputPlan::Segment& segment : plan_.segments) {
    ASSIGN_OR_RETURN(const Use* replacing, FindReplacing(segment));
    RETURN_IF_ERROR(AddRun(segment, replacing));
    RETURN_IF_ERROR(AddTerms(segment, row));
    row += segment.rows;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ResolveForward(const ForwardPlan& plan, const HostedBase& base,
                            const std::vector<AdapterHandle>& handles, ResolvedForward& resolved) {
  ASSIGN_OR_RETURN(resolved.module, FindForwardModule(plan, base));
  Resolver resolver(plan, handles, resolved);
  RETURN_IF_ERROR(resolver.ResolveAdapters());
  return resolver.ResolveSegments();
}

}  // namespace adapterd
