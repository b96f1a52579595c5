#include "service/input_plan.h"

#include <fmt/format.h>

#include <type_traits>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

absl::Status Invalid(const std::string& field, const std::string& what) {
  return Error(Reason::kInvalidField, fmt::format("{}: {}", field, what)).With("field", field);
}

absl::Status CheckCount(const std::string& field, int64_t count, int64_t limit) {
  if (count <= limit) return absl::OkStatus();
  return Invalid(field, fmt::format("expected at most {}, found {}", limit, count));
}

absl::Status ReadActivations(const v1::Tensor& message, const TensorPayloads& payloads,
                             InputPlan& plan) {
  ASSIGN_OR_RETURN(FloatTensor input, FloatTensor::Read(message, payloads, "input"));
  const Shape& shape = input.shape();
  if (shape.empty()) {
    return Error(Reason::kShapeMismatch, "input: expected [..., in_features], found a scalar")
        .With("field", "input")
        .With("actual", ShapeString(shape));
  }
  plan.in_features = shape.back();
  plan.leading.assign(shape.begin(), shape.end() - 1);
  plan.input = std::move(input);
  return absl::OkStatus();
}

absl::Status ReadInput(const v1::Tensor& message, const TensorPayloads& payloads, InputPlan& plan) {
  if (HoldsIntegers(message)) {
    ASSIGN_OR_RETURN(IdTensor ids, IdTensor::Read(message, payloads, "input"));
    plan.leading = ids.shape();
    plan.input = std::move(ids);
  } else {
    RETURN_IF_ERROR(ReadActivations(message, payloads, plan));
  }
  ASSIGN_OR_RETURN(plan.rows, ElementCount(plan.leading));
  if (plan.rows <= kMaxRows) return absl::OkStatus();
  return Invalid("input", fmt::format("expected at most {} rows, found {}", kMaxRows, plan.rows));
}

absl::Status ReadSegment(const v1::Segment& segment, const std::string& field, bool sole,
                         InputPlan& plan) {
  if (segment.rows() < 0) return Invalid(field + ".rows", "negative");
  RETURN_IF_ERROR(CheckCount(field + ".adapters", segment.adapters_size(), kMaxAdaptersPerSegment));
  InputPlan::Segment read;
  read.rows = sole && segment.rows() == 0 ? plan.rows : segment.rows();
  for (int i = 0; i < segment.adapters_size(); ++i) {
    ASSIGN_OR_RETURN(
        const AdapterRefs::Use use,
        plan.adapters.Add(segment.adapters(i), fmt::format("{}.adapters[{}]", field, i)));
    read.uses.push_back(use);
  }
  plan.segments.push_back(std::move(read));
  return absl::OkStatus();
}

using Segments = google::protobuf::RepeatedPtrField<v1::Segment>;

absl::Status ReadSegments(const Segments& segments, InputPlan& plan) {
  RETURN_IF_ERROR(CheckCount("segments", segments.size(), kMaxSegments));
  int64_t sum = 0;
  for (int i = 0; i < segments.size(); ++i) {
    RETURN_IF_ERROR(
        ReadSegment(segments.Get(i), fmt::format("segments[{}]", i), segments.size() == 1, plan));
    const auto added = CheckedAdd(sum, plan.segments.back().rows);
    if (!added) return Invalid("segments", "the rows overflow");
    sum = *added;
  }
  if (sum == plan.rows) return absl::OkStatus();
  return Error(Reason::kInvalidField,
               fmt::format("segments: the rows add up to {}, but the input has {}", sum, plan.rows))
      .With("field", "segments")
      .With("expected", plan.rows)
      .With("actual", sum);
}

// A base model has an output without adapters; nothing else has.
template <typename Request>
constexpr bool kNeedsAdapters = std::is_same_v<Request, v1::ApplyProjectionRequest>;

}  // namespace

template <typename Request>
absl::Status ReadInputPlan(const TensorMessage<Request>& request, InputPlan& plan) {
  const Request& message = request.message;
  plan.skip_untargeted = message.skip_untargeted();
  plan.skip_disabled = message.skip_disabled();
  if (!message.has_input()) return Invalid("input", "missing");
  RETURN_IF_ERROR(ReadInput(message.input(), request.payloads, plan));
  if (message.has_adapter() && message.segments_size() > 0) {
    return Invalid("adapter", "expected adapter or segments, found both");
  }
  if (message.segments_size() > 0) return ReadSegments(message.segments(), plan);
  InputPlan::Segment all = {plan.rows, {}};
  if (message.has_adapter()) {
    ASSIGN_OR_RETURN(const AdapterRefs::Use use, plan.adapters.Add(message.adapter(), "adapter"));
    all.uses.push_back(use);
  } else if (kNeedsAdapters<Request>) {
    return Invalid("adapter", "expected adapter or segments, found neither");
  }
  plan.segments.push_back(std::move(all));
  return absl::OkStatus();
}

template absl::Status ReadInputPlan(const TensorMessage<v1::ApplyProjectionRequest>& request,
                                    InputPlan& plan);
template absl::Status ReadInputPlan(const TensorMessage<v1::ForwardRequest>& request,
                                    InputPlan& plan);

}  // namespace adapterd
