#include "core/merge/certificate.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "core/base/sha256.h"

namespace adapterd {
namespace {

using Json = nlohmann::ordered_json;

Json StatsJson(const RoundingStats& sums) {
  const MergeStats stats = Summarise(sums);
  return {{"max_abs_delta", stats.max_abs_delta},
          {"max_abs_rounding_error", stats.max_abs_rounding_error},
          {"relative_rounding_error", stats.relative_rounding_error},
          {"zeroed_elements", stats.zeroed_elements},
          {"non_finite_elements", stats.non_finite_elements}};
}

}  // namespace

std::string CheckpointDigest(const CheckpointPlan& plan,
                             const std::vector<TensorOutcome>& outcomes) {
  Sha256 digest;
  digest.Update("adapterd-checkpoint-v1\n");
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    const OutputTensor& tensor = plan.tensors[i];
    digest.Update(fmt::format("{}\t{}\t{}\t{}\n", tensor.name, DTypeName(tensor.dtype),
                              fmt::join(tensor.shape.begin(), tensor.shape.end(), "x"),
                              outcomes[i].sha256));
  }
  return digest.FinishHex();
}

RoundingStats TotalStats(const CheckpointPlan& plan, const std::vector<TensorOutcome>& outcomes) {
  RoundingStats total;
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    if (plan.tensors[i].merged()) total.Add(outcomes[i].stats);
  }
  return total;
}

std::string Certificate(const CheckpointMergeRequest& request, std::string_view source_fingerprint,
                        const CheckpointPlan& plan, const std::vector<TensorOutcome>& outcomes) {
  Json adapters = Json::array();
  for (const CheckpointAdapter& adapter : request.adapters) {
    adapters.push_back({{"name", adapter.name},
                        {"revision", (*adapter.handle)->revision()},
                        {"weight", adapter.weight}});
  }
  Json tensors = Json::object();
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    const OutputTensor& tensor = plan.tensors[i];
    if (!tensor.merged()) continue;
    Json& entry = tensors[tensor.name] = StatsJson(outcomes[i].stats);
    entry["sha256"] = outcomes[i].sha256;
  }
  const Json certificate = {
      {"format", "adapterd-merge-v1"},
      {"source", {{"path", request.source}, {"fingerprint", source_fingerprint}}},
      {"adapters", std::move(adapters)},
      {"dtype", request.dtype ? Json(DTypeName(*request.dtype)) : Json(nullptr)},
      {"digest", CheckpointDigest(plan, outcomes)},
      {"unmatched_modules", plan.unmatched},
      {"stats", StatsJson(TotalStats(plan, outcomes))},
      {"tensors", std::move(tensors)}};
  return certificate.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace adapterd
