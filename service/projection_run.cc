#include "service/projection_run.h"

#include <fmt/format.h>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/compute/projection.h"

namespace adapterd {
namespace {

// One module of the request in each of its adapters.
struct ResolvedProjection {
  std::vector<std::optional<ResolvedModule>> by_ref;  // nullopt: not targeted, skipped
  std::vector<const PackedPair*> pairs;               // null where nothing is
  std::string path;                                   // of the first that targets it
  std::optional<int64_t> out_features;                // nullopt: nothing tells
};

absl::Status CheckWidth(const char* what, int64_t expected, int64_t actual,
                        const std::string& field, const AdapterRef& ref,
                        const ResolvedModule& module) {
  if (expected == actual) return absl::OkStatus();
  return Error(Reason::kShapeMismatch,
               fmt::format("{}: module {} of adapter \"{}\" has {} {}, found {}", field,
                           module.info->path, ref.name, what, expected, actual))
      .With("field", field)
      .With("adapter", ref.name)
      .With("module", module.info->path)
      .With("expected", expected)
      .With("actual", actual);
}

// The width of the output so far, from base_output or an earlier adapter, must be this one's too.
absl::Status AgreeOnWidth(const ProjectionPlan::Module& module, const AdapterRef& ref,
                          const ResolvedModule& found, ResolvedProjection& resolved) {
  if (resolved.out_features) {
    RETURN_IF_ERROR(CheckWidth("out_features", found.info->out_features, *resolved.out_features,
                               module.field, ref, found));
  }
  resolved.out_features = found.info->out_features;
  return absl::OkStatus();
}

absl::StatusOr<ResolvedProjection> Resolve(const ProjectionPlan& plan,
                                           const ProjectionPlan::Module& module,
                                           const std::vector<AdapterHandle>& handles) {
  ResolvedProjection resolved;
  if (module.base_output) resolved.out_features = module.base_output->shape().back();
  const std::vector<AdapterRef>& refs = plan.adapters.refs();
  for (size_t i = 0; i < refs.size(); ++i) {
    ASSIGN_OR_RETURN(auto found, ResolveModule(handles[i], refs[i], module.selector, module.field,
                                               plan.skip_untargeted));
    const PackedPair* pair = nullptr;
    if (found) {
      RETURN_IF_ERROR(CheckWidth("in_features", found->info->in_features, plan.in_features, "input",
                                 refs[i], *found));
      RETURN_IF_ERROR(AgreeOnWidth(module, refs[i], *found, resolved));
      absl::StatusOr<const PackedPair*> packed = handles[i]->Pair(found->index, plan.input.dtype());
      if (!packed.ok()) return Annotate(packed.status(), "adapter", refs[i].name);
      pair = *packed;
      if (resolved.path.empty()) resolved.path = found->info->path;
    }
    resolved.by_ref.push_back(found);
    resolved.pairs.push_back(pair);
  }
  return resolved;
}

Shape OutputShape(const ProjectionPlan& plan, const ResolvedProjection& resolved) {
  Shape shape = plan.leading;
  shape.push_back(resolved.out_features.value_or(0));
  return shape;
}

absl::StatusOr<int64_t> OutputBytes(const ProjectionPlan& plan,
                                    const std::vector<ResolvedProjection>& resolved) {
  int64_t total = 0;
  for (size_t i = 0; i < resolved.size(); ++i) {
    // Readable replies hold floats, whatever the dtype.
    const DType dtype = plan.input.readable() ? DType::kF32 : plan.modules[i].output_dtype;
    ASSIGN_OR_RETURN(int64_t bytes, ByteCount(dtype, OutputShape(plan, resolved[i])));
    const auto sum = CheckedAdd(total, bytes);
    if (!sum) return Error(Reason::kShapeMismatch, "the size of the outputs overflows");
    total = *sum;
  }
  return total;
}

// The terms of one module, segment by segment; counts what contributes.
std::vector<ProjectionSegment> Segments(const ProjectionPlan& plan,
                                        const ResolvedProjection& resolved, std::vector<bool>& used,
                                        int32_t& applied) {
  std::vector<ProjectionSegment> segments;
  segments.reserve(plan.segments.size());
  for (const ProjectionPlan::Segment& segment : plan.segments) {
    ProjectionSegment& out = segments.emplace_back();
    out.rows = segment.rows;
    for (const AdapterRefs::Use& use : segment.uses) {
      if (!resolved.by_ref[use.ref]) continue;
      used[use.ref] = true;
      ++applied;
      out.terms.push_back(
          {resolved.pairs[use.ref], use.weight * resolved.by_ref[use.ref]->info->scale});
    }
  }
  return segments;
}

class ResponseBuilder {
 public:
  ResponseBuilder(const ProjectionPlan& plan, v1::ApplyProjectionResponse& response)
      : plan_(plan), response_(response), used_(plan.adapters.refs().size(), false) {}

  ProjectionTarget AddOutput(const ProjectionPlan::Module& module,
                             const ResolvedProjection& resolved) {
    v1::ProjectionOutput& output = *response_.add_outputs();
    int32_t applied = 0;
    ProjectionTarget target;
    target.segments = Segments(plan_, resolved, used_, applied);
    output.set_applied(applied);
    output.set_path(resolved.path);
    writers_.emplace_back(*output.mutable_output(), module.output_dtype,
                          OutputShape(plan_, resolved), plan_.input.readable());
    const int64_t width = resolved.out_features.value_or(0);
    target.output = {module.output_dtype, plan_.rows, width, writers_.back().data()};
    if (module.base_output) {
      target.base_output =
          MatrixView{module.base_output->dtype(), plan_.rows, width, module.base_output->data()};
    }
    return target;
  }

  void Finish(const std::vector<AdapterHandle>& handles) {
    for (TensorWriter& writer : writers_) writer.Finish();
    AddUses(plan_.adapters.refs(), handles, used_, *response_.mutable_adapters());
  }

 private:
  const ProjectionPlan& plan_;
  v1::ApplyProjectionResponse& response_;
  std::vector<bool> used_;
  std::vector<TensorWriter> writers_;
};

}  // namespace

absl::Status RunProjection(DataPlane& plane, const RpcCall& call, const ProjectionPlan& plan,
                           const std::vector<AdapterHandle>& handles, Admission::Ticket& admitted,
                           v1::ApplyProjectionResponse& response) {
  Metrics& metrics = plane.environment.metrics;
  const absl::Time start = absl::Now();
  std::vector<ResolvedProjection> resolved;
  for (const ProjectionPlan::Module& module : plan.modules) {
    ASSIGN_OR_RETURN(resolved.emplace_back(), Resolve(plan, module, handles));
  }
  ASSIGN_OR_RETURN(const int64_t output_bytes, OutputBytes(plan, resolved));
  RETURN_IF_ERROR(call.CheckMessageSize("reply", output_bytes));
  RETURN_IF_ERROR(admitted.Grow(output_bytes));
  ResponseBuilder builder(plan, response);
  std::vector<ProjectionTarget> targets;
  for (size_t i = 0; i < resolved.size(); ++i) {
    targets.push_back(builder.AddOutput(plan.modules[i], resolved[i]));
  }
  const absl::Time parsed = absl::Now();
  metrics.Apply(ApplyStage::kParse, parsed - start);

  RETURN_IF_ERROR(ApplyProjection(plane.kernels, plane.workers, plan.InputMatrix(), targets,
                                  call.cancellation()));
  const absl::Time computed = absl::Now();
  metrics.Apply(ApplyStage::kCompute, computed - parsed);

  builder.Finish(handles);
  metrics.ApplyRows(plan.rows);
  metrics.Apply(ApplyStage::kSerialize, absl::Now() - computed);
  return absl::OkStatus();
}

}  // namespace adapterd
