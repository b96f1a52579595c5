#include "service/status_query.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <string_view>
#include <utility>

#include "core/base/error.h"
#include "core/base/quote.h"
#include "service/collectors.h"

namespace adapterd {
namespace {

constexpr std::pair<std::string_view, StatusQuery::Order> kOrders[] = {
    {"name", StatusQuery::Order::kName},
    {"memory", StatusQuery::Order::kMemory},
    {"uses", StatusQuery::Order::kUses},
    {"last_use", StatusQuery::Order::kLastUse},
};

absl::Status Unknown(const char* field, const std::string& value) {
  return Error(Reason::kInvalidField, fmt::format("{}: unknown value {}", field, Quoted(value)))
      .With("field", field);
}

bool Matches(const AdapterSnapshot& adapter, const StatusQuery& query) {
  if (query.state && adapter.state != *query.state) return false;
  const auto has = [&](const std::string& text) {
    return text.find(query.filter) != std::string::npos;
  };
  return query.filter.empty() || has(adapter.name) || has(adapter.source) ||
         (adapter.description != nullptr && has(adapter.description->base_model));
}

// Adapters are given by name, so that a stable sort leaves equal ones in that order.
void Sort(StatusQuery::Order order, std::vector<const AdapterSnapshot*>& adapters) {
  const auto descending = [&](auto key) {
    std::stable_sort(adapters.begin(), adapters.end(),
                     [&](const auto* a, const auto* b) { return key(*a) > key(*b); });
  };
  switch (order) {
    case StatusQuery::Order::kName:
      return;
    case StatusQuery::Order::kMemory:
      return descending([](const AdapterSnapshot& a) { return a.memory_bytes; });
    case StatusQuery::Order::kUses:
      return descending([](const AdapterSnapshot& a) { return a.use_count; });
    case StatusQuery::Order::kLastUse:
      return descending([](const AdapterSnapshot& a) { return a.last_use_time; });
  }
}

}  // namespace

absl::StatusOr<StatusQuery> ReadStatusQuery(const std::multimap<std::string, std::string>& query) {
  StatusQuery out;
  for (const auto& [field, value] : query) {
    if (field == "filter") {
      out.filter = value;
    } else if (field == "state" && !value.empty()) {
      for (AdapterState state : kAdapterStates) {
        if (value == StateLabel(state)) out.state = state;
      }
      if (!out.state) return Unknown("state", value);
    } else if (field == "order") {
      const auto* const order = std::find_if(std::begin(kOrders), std::end(kOrders),
                                             [&](const auto& each) { return each.first == value; });
      if (order == std::end(kOrders)) return Unknown("order", value);
      out.order = order->second;
    } else if (field == "page") {
      const char* const end = value.data() + value.size();
      const auto [read, error] = std::from_chars(value.data(), end, out.page);
      if (error != std::errc() || read != end) return Unknown("page", value);
    }
  }
  return out;
}

std::vector<const AdapterSnapshot*> Select(const std::vector<AdapterSnapshot>& all,
                                           const StatusQuery& query) {
  std::vector<const AdapterSnapshot*> selected;
  for (const AdapterSnapshot& adapter : all) {
    if (Matches(adapter, query)) selected.push_back(&adapter);
  }
  Sort(query.order, selected);
  return selected;
}

}  // namespace adapterd
