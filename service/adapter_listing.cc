#include "service/adapter_listing.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/adapter_convert.h"
#include "service/page_token.h"

namespace adapterd {
namespace {

// Of one adapter in the reply, besides its own bytes: tag and length.
constexpr size_t kEntryBytes = 8;

absl::StatusOr<std::optional<AdapterState>> StateFromProto(v1::AdapterState state) {
  switch (state) {
    case v1::ADAPTER_STATE_UNSPECIFIED:
      return std::nullopt;
    case v1::ADAPTER_STATE_LOADING:
      return AdapterState::kLoading;
    case v1::ADAPTER_STATE_READY:
      return AdapterState::kReady;
    case v1::ADAPTER_STATE_EVICTED:
      return AdapterState::kEvicted;
    case v1::ADAPTER_STATE_FAILED:
      return AdapterState::kFailed;
    default:
      return Error(Reason::kInvalidField,
                   fmt::format("state: unknown value {}", static_cast<int>(state)))
          .With("field", "state");
  }
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

void FillSummary(const RegistryTotals& totals, v1::AdapterSummary& out) {
  out.set_adapter_count(totals.adapters);
  out.set_resident_count(totals.resident);
  out.set_memory_bytes(totals.memory_bytes);
  out.set_memory_budget_bytes(totals.budget_bytes);
  out.set_parameter_count(totals.parameters);
}

}  // namespace

absl::StatusOr<ListingPage> ReadListing(const v1::ListAdaptersRequest& request) {
  if (request.page_size() < 0) {
    return Error(Reason::kInvalidField,
                 fmt::format("page_size: expected 0 or more, found {}", request.page_size()))
        .With("field", "page_size");
  }
  RETURN_IF_ERROR(CheckView(request.view()));
  ListingPage page;
  ASSIGN_OR_RETURN(page.query.state, StateFromProto(request.state()));
  page.query.name_prefix = request.name_prefix();
  page.query.base_model = request.base_model();
  page.query.labels = Labels(request.labels().begin(), request.labels().end());
  page.query.limit =
      request.page_size() == 0 ? kDefaultPageSize : std::min(request.page_size(), kMaxPageSize);
  page.filters = FilterKey(request);
  if (!request.page_token().empty()) {
    ASSIGN_OR_RETURN(PagePosition position, ReadPageToken(request.page_token(), page.filters));
    page.query.after = std::move(position.last_name);
    page.first_sequence = position.sequence;
  }
  return page;
}

void FillListing(const ListingPage& page, const ListPage& listed, const RegistryTotals& totals,
                 v1::AdapterView view, v1::ListAdaptersResponse& response) {
  const int64_t sequence = page.first_sequence.value_or(listed.sequence);
  bool more = listed.more;
  size_t bytes = 0;
  for (const AdapterSnapshot& adapter : listed.adapters) {
    v1::Adapter out;
    ToProto(adapter, view, out);
    bytes += out.ByteSizeLong() + kEntryBytes;
    if (bytes > kMaxPageBytes && response.adapters_size() > 0) {
      more = true;
      break;
    }
    *response.add_adapters() = std::move(out);
  }
  if (more && response.adapters_size() > 0) {
    const std::string& last = response.adapters(response.adapters_size() - 1).name();
    response.set_next_page_token(MakePageToken({last, sequence}, page.filters));
  }
  response.set_total_size(listed.total);
  response.set_sequence(sequence);
  FillSummary(totals, *response.mutable_summary());
}

std::vector<AdapterSnapshot> ListEverything(const AdapterRegistry& registry) {
  std::vector<AdapterSnapshot> all;
  ListQuery query;
  query.limit = kMaxPageSize;
  for (bool more = true; more;) {
    ListPage page = registry.List(query);
    more = page.more && !page.adapters.empty();
    std::move(page.adapters.begin(), page.adapters.end(), std::back_inserter(all));
    if (more) query.after = all.back().name;
  }
  return all;
}

}  // namespace adapterd
