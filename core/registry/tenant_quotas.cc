// What adapters, loads and calls of one tenant add up to.
#include "core/registry/tenant_quotas.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <string_view>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/registry/adapter_registry.h"
#include "core/registry/registry_state.h"

namespace adapterd {
namespace {

std::string_view TenantOf(const Labels& labels) {
  const auto found = labels.find(kTenantLabel);
  return found == labels.end() ? std::string_view() : found->second;
}

absl::Status Exceeded(std::string_view tenant, const char* what, int64_t quota, int64_t needed) {
  return Error(Reason::kQuotaExceeded,
               fmt::format("tenant \"{}\" may have {} {}, and would have {}", tenant, quota, what,
                           needed))
      .With("tenant", std::string(tenant))
      .With("quota", what)
      .With("expected", fmt::format("at most {}", quota))
      .With("actual", fmt::format("{}", needed));
}

absl::Status TooOften(std::string_view tenant, int64_t calls_per_second) {
  return Error(Reason::kQuotaExceeded,
               fmt::format("adapters of tenant \"{}\" may be used by {} calls a second", tenant,
                           calls_per_second))
      .With("tenant", std::string(tenant))
      .With("quota", "calls a second")
      .With("expected", fmt::format("at most {}", calls_per_second));
}

}  // namespace

int64_t AdapterRegistry::BytesOf(const State& state) {
  int64_t bytes = state.current == nullptr ? 0 : state.current->bytes;
  for (const RecordPtr& record : state.kept) bytes += record->bytes;
  return bytes;
}

int64_t AdapterRegistry::BytesKeptBeside(const State& state) const {
  if (state.current == nullptr || options_.keep_revisions == 0) return 0;
  int64_t bytes = state.current->bytes;
  const size_t rest = std::min(options_.keep_revisions - 1, state.kept.size());
  for (size_t i = 0; i < rest; ++i) bytes += state.kept[i]->bytes;
  return bytes;
}

absl::Status AdapterRegistry::CheckQuota(const std::string& name, const Labels& labels,
                                         int64_t bytes) const {
  const std::string_view tenant = TenantOf(labels);
  const auto quota = options_.tenant_quotas.find(tenant);
  if (quota == options_.tenant_quotas.end()) return absl::OkStatus();
  int64_t adapters = 1;
  for (const auto& [other, entry] : entries_) {
    const bool claims = entry.job != nullptr && entry.job->claimed_tenant == tenant;
    if (other == name || (!claims && TenantOf(entry.state.labels) != tenant)) continue;
    ++adapters;
    bytes += std::max(BytesOf(entry.state), claims ? entry.job->claimed_bytes : 0);
  }
  if (adapters > quota->second.adapters) {
    return Exceeded(tenant, "adapters", quota->second.adapters, adapters);
  }
  if (bytes > quota->second.bytes) return Exceeded(tenant, "bytes", quota->second.bytes, bytes);
  return absl::OkStatus();
}

absl::Status AdapterRegistry::ClaimQuota(Job& job, std::optional<int64_t> new_bytes) {
  absl::MutexLock lock(&mutex_);
  const LoadRequest& request = *job.load;
  const State& state = entries_.at(request.name).state;
  const bool keeps = request.keep_options && state.current != nullptr;
  const Labels& labels = keeps ? state.labels : request.labels;
  const int64_t bytes = new_bytes ? *new_bytes + BytesKeptBeside(state) : BytesOf(state);
  RETURN_IF_ERROR(CheckQuota(request.name, labels, bytes));
  job.claimed_tenant = TenantOf(labels);
  job.claimed_bytes = bytes;
  return absl::OkStatus();
}

std::map<std::string, TokenBucket, std::less<>> AdapterRegistry::TenantCalls(
    const TenantQuotas& quotas) {
  std::map<std::string, TokenBucket, std::less<>> calls;
  for (const auto& [tenant, quota] : quotas) {
    if (quota.calls_per_second > 0) calls.try_emplace(tenant, quota.calls_per_second);
  }
  return calls;
}

absl::Status AdapterRegistry::ChargeTenants(const std::vector<AdapterRef>& refs,
                                            TokenBucket::Clock::time_point now) {
  if (options_.tenant_quotas.empty()) return absl::OkStatus();
  absl::MutexLock lock(&mutex_);
  std::set<TokenBucket*> charged;
  for (const AdapterRef& ref : refs) {
    const auto entry = entries_.find(ref.name);
    if (entry == entries_.end()) continue;
    const auto calls = tenant_calls_.find(TenantOf(entry->second.state.labels));
    if (calls == tenant_calls_.end()) continue;
    if (!calls->second.HasToken(now)) {
      return TooOften(calls->first, options_.tenant_quotas.at(calls->first).calls_per_second);
    }
    charged.insert(&calls->second);
  }
  for (TokenBucket* bucket : charged) bucket->Take();
  return absl::OkStatus();
}

}  // namespace adapterd
