#include "service/metrics.h"

#include <prometheus/text_serializer.h>

#include <algorithm>
#include <tuple>

#include "core/base/error.h"

namespace adapterd {
namespace {

using prometheus::Histogram;

// Seconds. From a tiny projection to a load from a slow disk.
const Histogram::BucketBoundaries kLatency = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005,
                                              0.01,   0.025,   0.05,   0.1,   0.25,   0.5,
                                              1,      2.5,     5,      10,    30,     60};
// Stages of a projection start lower: a queue wait is microseconds.
const Histogram::BucketBoundaries kStage = {0.00001, 0.000025, 0.00005, 0.0001, 0.00025,
                                            0.0005,  0.001,    0.0025,  0.005,  0.01,
                                            0.025,   0.05,     0.1,     0.5,    1};

prometheus::Family<prometheus::Counter>& CounterFamily(prometheus::Registry& registry,
                                                       const std::string& name,
                                                       const std::string& help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}

prometheus::Family<Histogram>& HistogramFamily(prometheus::Registry& registry,
                                               const std::string& name, const std::string& help) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
}

prometheus::Labels MethodLabels(const std::string& service, const std::string& method) {
  return {{"grpc_service", service}, {"grpc_method", method}};
}

double Seconds(absl::Duration duration) { return absl::ToDoubleSeconds(duration); }

}  // namespace

std::string CodeLabel(absl::StatusCode code) {
  std::string label;
  if (code == absl::StatusCode::kOk) return "OK";
  bool upper = true;
  for (char c : absl::StatusCodeToString(code)) {  // RESOURCE_EXHAUSTED
    if (c == '_') {
      upper = true;
      continue;
    }
    label.push_back(upper ? c : static_cast<char>(std::tolower(c)));
    upper = false;
  }
  return label == "Cancelled" ? "Canceled" : label;  // as the Go middleware that coined the names
}

RpcMetrics::RpcMetrics(std::string service, std::string method, prometheus::Registry& registry)
    : service_(std::move(service)),
      method_(std::move(method)),
      started_(CounterFamily(registry, "grpc_server_started_total", "RPCs started.")
                   .Add(MethodLabels(service_, method_))),
      seconds_(HistogramFamily(registry, "grpc_server_handling_seconds",
                               "Time from the arrival of a request to its answer, in seconds.")
                   .Add(MethodLabels(service_, method_), kLatency)),
      handled_(CounterFamily(registry, "grpc_server_handled_total", "RPCs answered, by code.")) {}

prometheus::Counter& RpcMetrics::CounterOf(absl::StatusCode code) {
  const bool ok = code == absl::StatusCode::kOk;
  if (prometheus::Counter* known = handled_ok_.load(); ok && known != nullptr) return *known;
  prometheus::Labels labels = MethodLabels(service_, method_);
  labels["grpc_code"] = CodeLabel(code);
  prometheus::Counter& counter = handled_.Add(labels);
  if (ok) handled_ok_ = &counter;
  return counter;
}

void RpcMetrics::Handled(absl::StatusCode code, absl::Duration duration) {
  CounterOf(code).Increment();
  seconds_.Observe(Seconds(duration));
}

RpcTotals RpcMetrics::Totals() const {
  RpcTotals totals{service_, method_};
  const prometheus::ClientMetric::Histogram histogram = seconds_.Collect().histogram;
  totals.count = static_cast<int64_t>(histogram.sample_count);
  const prometheus::Counter* const ok = handled_ok_.load();
  // An answer that comes meanwhile may be in one of the two already.
  totals.errors =
      std::max<int64_t>(0, totals.count - (ok == nullptr ? 0 : static_cast<int64_t>(ok->Value())));
  for (const auto& bucket : histogram.bucket) {
    totals.buckets.push_back(static_cast<int64_t>(bucket.cumulative_count));
  }
  return totals;
}

Metrics::Metrics()
    : loads_(CounterFamily(registry_, "adapterd_loads_total",
                           "Adapter loads, by result: loaded, unchanged, or the error's reason.")),
      load_seconds_(HistogramFamily(registry_, "adapterd_load_duration_seconds",
                                    "Time to read, check and pack an adapter, in seconds.")
                        .Add({}, kLatency)),
      evictions_(CounterFamily(registry_, "adapterd_evictions_total",
                               "Adapters evicted to make room for others.")
                     .Add({})),
      stage_seconds_(HistogramFamily(registry_, "adapterd_apply_stage_seconds",
                                     "Time of each stage of ApplyProjection, in seconds.")),
      apply_rows_(CounterFamily(registry_, "adapterd_apply_rows_total",
                                "Input rows that ApplyProjection has projected.")
                      .Add({})),
      merge_seconds_(HistogramFamily(registry_, "adapterd_merge_duration_seconds",
                                     "Time of the compute stage of merges, in seconds.")
                         .Add({}, kLatency)),
      merge_bytes_(CounterFamily(registry_, "adapterd_merge_bytes_total",
                                 "Bytes of weights that merges have computed or written.")
                       .Add({})),
      inflight_bytes_(prometheus::BuildGauge()
                          .Name("adapterd_inflight_bytes")
                          .Help("Bytes of requests and replies being worked on.")
                          .Register(registry_)
                          .Add({})),
      rejected_(CounterFamily(registry_, "adapterd_rejected_total",
                              "Requests answered with an error, by reason.")),
      policy_reads_(
          CounterFamily(registry_, "adapterd_access_policy_reads_total",
                        "Times that the access policy was read, by result: taken_over, failed.")),
      audit_failures_(CounterFamily(registry_, "adapterd_audit_failures_total",
                                    "Changes whose line could not be written to the audit log.")
                          .Add({})),
      memory_pressures_(CounterFamily(registry_, "adapterd_memory_pressure_total",
                                      "Times that the memory of the cgroup was nearly used up.")
                            .Add({})) {
  for (const char* stage : {"queue", "parse", "compute", "serialize"}) {
    stages_.push_back(&stage_seconds_.Add({{"stage", stage}}, kStage));
  }
}

RpcMetrics& Metrics::Rpc(const std::string& service, const std::string& method) {
  absl::MutexLock lock(&mutex_);
  std::unique_ptr<RpcMetrics>& rpc = rpcs_[service + "/" + method];
  if (rpc == nullptr) rpc = std::make_unique<RpcMetrics>(service, method, registry_);
  return *rpc;
}

std::vector<RpcTotals> Metrics::Totals() const {
  std::vector<RpcTotals> all;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [name, rpc] : rpcs_) all.push_back(rpc->Totals());
  }
  std::sort(all.begin(), all.end(), [](const RpcTotals& a, const RpcTotals& b) {
    return std::tie(a.service, a.method) < std::tie(b.service, b.method);
  });
  return all;
}

const std::vector<double>& Metrics::LatencyBounds() { return kLatency; }

void Metrics::Load(const absl::Status& status, bool read, absl::Duration duration) {
  const std::string result = status.ok() ? (read ? "loaded" : "unchanged")
                                         : std::string(ReasonName(GetErrorDetails(status).reason));
  loads_.Add({{"result", result}}).Increment();
  if (read) load_seconds_.Observe(Seconds(duration));
}

void Metrics::Apply(ApplyStage stage, absl::Duration duration) {
  stages_[static_cast<size_t>(stage)]->Observe(Seconds(duration));
}

void Metrics::Merge(absl::Duration duration, int64_t bytes) {
  merge_seconds_.Observe(Seconds(duration));
  merge_bytes_.Increment(static_cast<double>(bytes));
}

void Metrics::PolicyRead(bool ok) {
  policy_reads_.Add({{"result", ok ? "taken_over" : "failed"}}).Increment();
}

void Metrics::Rejected(std::string_view reason) {
  rejected_.Add({{"reason", std::string(reason)}}).Increment();
}

std::string Metrics::Text(const std::vector<prometheus::MetricFamily>& more) const {
  std::vector<prometheus::MetricFamily> families = registry_.Collect();
  families.insert(families.end(), more.begin(), more.end());
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace adapterd
