#include "service/adapter_listing.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/adapter_convert.h"
#include "service/page_token.h"

namespace adapterd {
namespace {

bool Matches(const AdapterSnapshot& adapter, const v1::ListAdaptersRequest& request) {
  if (adapter.name.rfind(request.name_prefix(), 0) != 0) return false;
  if (request.state() != v1::ADAPTER_STATE_UNSPECIFIED &&
      ToProto(adapter.state) != request.state()) {
    return false;
  }
  if (!request.base_model().empty() &&
      (adapter.manifest == nullptr || adapter.manifest->base_model != request.base_model())) {
    return false;
  }
  return std::all_of(request.labels().begin(), request.labels().end(), [&](const auto& label) {
    const auto it = adapter.labels.find(label.first);
    return it != adapter.labels.end() && it->second == label.second;
  });
}

std::string Sized(const std::string& text) { return fmt::format("{}:{}", text.size(), text); }

// The request without what differs from page to page, in one fixed order. Different filters never
// give the same key.
std::string FilterKey(const v1::ListAdaptersRequest& request) {
  std::string key = fmt::format("{} {}{}", static_cast<int>(request.state()),
                                Sized(request.base_model()), Sized(request.name_prefix()));
  for (const auto& [name, value] : Labels(request.labels().begin(), request.labels().end())) {
    key += Sized(name) + Sized(value);
  }
  return key;
}

void FillSummary(const std::vector<AdapterSnapshot>& adapters, int64_t memory_budget_bytes,
                 v1::AdapterSummary& out) {
  int64_t resident = 0;
  int64_t bytes = 0;
  int64_t parameters = 0;
  for (const AdapterSnapshot& adapter : adapters) {
    resident += adapter.state == AdapterState::kReady ? 1 : 0;
    bytes += adapter.memory_bytes;
    if (adapter.manifest != nullptr) parameters += adapter.manifest->parameter_count();
  }
  out.set_adapter_count(static_cast<int64_t>(adapters.size()));
  out.set_resident_count(resident);
  out.set_memory_bytes(bytes);
  out.set_memory_budget_bytes(memory_budget_bytes);
  out.set_parameter_count(parameters);
}

}  // namespace

absl::Status FillListing(const std::vector<AdapterSnapshot>& adapters, int64_t memory_budget_bytes,
                         const v1::ListAdaptersRequest& request,
                         v1::ListAdaptersResponse& response) {
  if (request.page_size() < 0) {
    return Error(Reason::kInvalidField, "page_size: negative").With("field", "page_size");
  }
  if (!v1::AdapterState_IsValid(request.state())) {
    return Error(Reason::kInvalidField,
                 fmt::format("state: unknown value {}", static_cast<int>(request.state())))
        .With("field", "state");
  }
  const std::string filters = FilterKey(request);
  std::string after;
  if (!request.page_token().empty()) {
    ASSIGN_OR_RETURN(after, ReadPageToken(request.page_token(), filters));
  }
  const int64_t limit =
      request.page_size() == 0 ? kDefaultPageSize : std::min(request.page_size(), kMaxPageSize);
  size_t bytes = 0;
  bool full = false;
  for (const AdapterSnapshot& adapter : adapters) {
    if (!Matches(adapter, request)) continue;
    response.set_total_size(response.total_size() + 1);
    if (full || (!after.empty() && adapter.name <= after)) continue;
    if (response.adapters_size() == limit || bytes >= kMaxPageBytes) {
      full = true;
      response.set_next_page_token(
          MakePageToken(response.adapters(response.adapters_size() - 1).name(), filters));
      continue;
    }
    v1::Adapter& out = *response.add_adapters();
    ToProto(adapter, request.view(), out);
    bytes += out.ByteSizeLong();
  }
  FillSummary(adapters, memory_budget_bytes, *response.mutable_summary());
  return absl::OkStatus();
}

}  // namespace adapterd
