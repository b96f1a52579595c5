// Every metric that this program counts, by the names that dashboards rely on.
#ifndef ADAPTERD_SERVICE_METRICS_H_
#define ADAPTERD_SERVICE_METRICS_H_

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace adapterd {

// What an RPC method has answered so far.
struct RpcTotals {
  std::string service;
  std::string method;
  int64_t count = 0;
  int64_t errors = 0;  // all but OK
  // One for each of Metrics::LatencyBounds(), with all that are not above it; then one with all.
  std::vector<int64_t> buckets;
};

// Metrics of one RPC method, looked up once.
class RpcMetrics {
 public:
  RpcMetrics(std::string service, std::string method, prometheus::Registry& registry);

  const std::string& service() const { return service_; }
  const std::string& method() const { return method_; }
  void Started() { started_.Increment(); }
  void Handled(absl::StatusCode code, absl::Duration duration);
  RpcTotals Totals() const;

 private:
  const std::string service_;
  const std::string method_;
  prometheus::Counter& CounterOf(absl::StatusCode code);

  prometheus::Counter& started_;
  prometheus::Histogram& seconds_;
  prometheus::Family<prometheus::Counter>& handled_;
  std::atomic<prometheus::Counter*> handled_ok_{nullptr};  // looked up once
};

enum class ApplyStage { kQueue, kParse, kCompute, kSerialize };

// Owns the Prometheus registry and everything in it that is counted as it happens; what can be read
// off the adapter registry or /proc at scrape time is collected there (collectors.h).
// Any thread. An observation costs an atomic add, or a short lock for a histogram.
class Metrics {
 public:
  Metrics();

  RpcMetrics& Rpc(const std::string& service, const std::string& method)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Load(const absl::Status& status, bool read, absl::Duration duration);
  void Evicted() { evictions_.Increment(); }
  void Apply(ApplyStage stage, absl::Duration duration);
  void ApplyRows(int64_t rows) { apply_rows_.Increment(static_cast<double>(rows)); }
  void Merge(absl::Duration duration, int64_t bytes);
  // By a stream or in a checkpoint.
  void MergedBytes(int64_t bytes) { merge_bytes_.Increment(static_cast<double>(bytes)); }
  void Rejected(std::string_view reason);
  // The policy file was read, and could be taken over or not.
  void PolicyRead(bool ok);
  void AuditFailed() { audit_failures_.Increment(); }
  void MemoryPressure() { memory_pressures_.Increment(); }
  prometheus::Gauge& inflight_bytes() { return inflight_bytes_; }

  // Of every method that was looked up, by service and method.
  std::vector<RpcTotals> Totals() const ABSL_LOCKS_EXCLUDED(mutex_);
  static const std::vector<double>& LatencyBounds();  // seconds, ascending

  prometheus::Registry& registry() { return registry_; }
  std::string Text(const std::vector<prometheus::MetricFamily>& more) const;

 private:
  prometheus::Registry registry_;  // synchronises itself, like all that it owns
  prometheus::Family<prometheus::Counter>& loads_;
  prometheus::Histogram& load_seconds_;
  prometheus::Counter& evictions_;
  prometheus::Family<prometheus::Histogram>& stage_seconds_;
  std::vector<prometheus::Histogram*> stages_;
  prometheus::Counter& apply_rows_;
  prometheus::Histogram& merge_seconds_;
  prometheus::Counter& merge_bytes_;
  prometheus::Gauge& inflight_bytes_;
  prometheus::Family<prometheus::Counter>& rejected_;
  prometheus::Family<prometheus::Counter>& policy_reads_;
  prometheus::Counter& audit_failures_;
  prometheus::Counter& memory_pressures_;

  mutable absl::Mutex mutex_;
  absl::flat_hash_map<std::string, std::unique_ptr<RpcMetrics>> rpcs_ ABSL_GUARDED_BY(mutex_);
};

// "OK", "ResourceExhausted": how gRPC's metrics write codes.
std::string CodeLabel(absl::StatusCode code);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_METRICS_H_
