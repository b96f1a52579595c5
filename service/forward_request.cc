#include "service/forward_request.h"

#include <algorithm>
#include <limits>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/base_model/dora_gains.h"
#include "service/projection_request.h"

namespace adapterd {
namespace {

// What memory delivers in kShortWork: with few rows a product takes as long as reading its weight.
constexpr double kShortBytes = 500e3;

// The work of the base products in FLOPs; that of one which waits for memory counts as long as it
// takes. Saturated.
double WorkOf(const std::vector<BaseRun>& runs, const ForwardPlan& plan, int64_t short_flops) {
  double work = 0;
  for (const BaseRun& run : runs) {
    const auto rows = static_cast<double>(run.rows);
    const double elements =
        static_cast<double>(run.weight.rows()) * static_cast<double>(run.weight.cols());
    const bool is_lookup = plan.ids() != nullptr;
    const double flops = is_lookup ? 0 : 2 * rows * elements;
    const double bytes = is_lookup ? rows * static_cast<double>(run.weight.cols()) * sizeof(float)
                                   : static_cast<double>(run.weight.bytes());
    work += std::max(flops, bytes / kShortBytes * static_cast<double>(short_flops));
  }
  return work;
}

}  // namespace

absl::StatusOr<DataRequest::Needs> ForwardRequest::Parse() {
  const absl::Time start = absl::Now();
  RETURN_IF_ERROR(ReadRequest());
  ASSIGN_OR_RETURN(plan_, PlanForward(request()));
  ASSIGN_OR_RETURN(NamedBase found, plane().bases.Find(plan_.base_model));
  base_ = std::move(found.base);
  parsing_ = absl::Now() - start;
  return Needs{plan_.adapters.refs(), plan_.skip_disabled};
}

absl::StatusOr<int64_t> ForwardRequest::Prepare(const std::vector<AdapterHandle>& handles) {
  const absl::Time start = absl::Now();
  RETURN_IF_ERROR(ResolveForward(plan_, *base_, handles, resolved_.emplace()));
  RETURN_IF_ERROR(MakeOutput());
  plane().environment.metrics.Apply(ApplyStage::kParse, parsing_ + (absl::Now() - start));
  if (!resolved_->dora.empty()) return std::numeric_limits<int64_t>::max();  // may read a weight
  constexpr double kMost = 1e18;
  const double work =
      WorkOf(resolved_->runs, plan_, plane().short_flops) + FlopsOf(target_.segments);
  return static_cast<int64_t>(std::min(work, kMost));
}

DType ForwardRequest::OutputType() const {
  if (plan_.output_dtype) return *plan_.output_dtype;
  return plan_.ids() != nullptr ? resolved_->module.snapshot.module->dtype : plan_.input_dtype();
}

absl::Status ForwardRequest::MakeOutput() {
  Shape shape = plan_.leading;
  shape.push_back(resolved_->out_features);
  const DType dtype = OutputType();
  // Readable replies hold floats, whatever the dtype.
  ASSIGN_OR_RETURN(const int64_t reply_bytes,
                   ByteCount(plan_.readable() ? DType::kF32 : dtype, shape));
  ASSIGN_OR_RETURN(const int64_t sum_bytes, ByteCount(DType::kF32, shape));
  RETURN_IF_ERROR(plane().environment.CheckMessageSize("reply", reply_bytes));
  const bool in_place = dtype == DType::kF32;
  const auto bytes = CheckedAdd(reply_bytes, in_place ? 0 : sum_bytes);
  if (!bytes) return Error(Reason::kShapeMismatch, "the size of the output overflows");
  RETURN_IF_ERROR(Grow(*bytes));
  writer_.emplace(*response().message.mutable_output(), dtype, shape, plan_.readable(),
                  plane().buffers);
  if (!in_place) sums_ = plane().buffers.Take(static_cast<size_t>(sum_bytes));
  base_output_ = in_place ? writer_->data() : sums_.data();
  target_.segments = std::move(resolved_->segments);
  target_.base_output = MatrixView{DType::kF32, plan_.rows, resolved_->out_features, base_output_};
  target_.output = {dtype, plan_.rows, resolved_->out_features, writer_->data()};
  return absl::OkStatus();
}

absl::Status ForwardRequest::FindGains() {
  for (const DoraNeed& need : resolved_->dora) {
    ResolvedTerm& term = *resolved_->by_ref[need.ref]->term;
    const AdapterHandle& adapter = handles()[need.ref];
    const size_t module = term.module.index;
    const DoraPlace place = {adapter->revision(), module, term.module.pair,
                             resolved_->module.snapshot};
    Gains gains = plane().dora_gains.Find(place);
    if (gains == nullptr) {
      const PairFactors factors = adapter->Factors(module, term.module.pair);
      const MergeTerm delta = {AsMatrix(factors.lora_a), AsMatrix(factors.lora_b),
                               term.module.info->scale};
      auto computed = ComputeDoraGains(plane().kernels, plane().workers, need.weight, delta,
                                       adapter->extras(module).magnitude_f32, cancellation());
      if (!computed.ok()) {
        return Annotate(Annotate(computed.status(), "module", resolved_->module.path()), "adapter",
                        plan_.adapters.refs()[need.ref].name);
      }
      gains = *std::move(computed);
      plane().dora_gains.Insert(place, gains);
    }
    term.dora->gain = gains->data();
    gains_.push_back(std::move(gains));
  }
  return absl::OkStatus();
}

absl::Status ForwardRequest::Multiply() {
  RETURN_IF_ERROR(FindGains());
  const ProjectionInput input = plan_.Input();
  auto* sums = reinterpret_cast<float*>(base_output_);
  RETURN_IF_ERROR(
      MultiplyBase(plane().kernels, plane().workers, input, resolved_->runs, sums, cancellation()));
  return ApplyProjection(plane().kernels, plane().workers, input, {&target_, 1}, cancellation());
}

absl::Status ForwardRequest::Compute() {
  Metrics& metrics = plane().environment.metrics;
  const absl::Time start = absl::Now();
  RETURN_IF_ERROR(Multiply());
  const absl::Time computed = absl::Now();
  metrics.Apply(ApplyStage::kQueue, queued());
  metrics.Apply(ApplyStage::kCompute, computed - start);
  writer_->Finish(response().payloads);
  AddUses(plan_.adapters.refs(), handles(), resolved_->used,
          *response().message.mutable_adapters());
  metrics.ApplyRows(plan_.rows);
  metrics.Apply(ApplyStage::kSerialize, absl::Now() - computed);
  return absl::OkStatus();
}

void ForwardRequest::DropBuffers() {
  writer_.reset();
  sums_ = {};
  gains_.clear();
  resolved_.reset();
  base_.reset();
}

}  // namespace adapterd
