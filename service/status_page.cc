#include "service/status_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "core/base/quote.h"
#include "core/base/sha256.h"
#include "service/adapter_listing.h"
#include "service/collectors.h"

namespace adapterd {
namespace {

using Json = nlohmann::ordered_json;

const char* EventName(AdapterEventType type) {
  switch (type) {
    case AdapterEventType::kLoaded:
      return "loaded";
    case AdapterEventType::kReplaced:
      return "replaced";
    case AdapterEventType::kEvicted:
      return "evicted";
    case AdapterEventType::kRestored:
      return "restored";
    case AdapterEventType::kUpdated:
      return "updated";
    case AdapterEventType::kFailed:
      return "failed";
    default:
      return "unloaded";
  }
}

double UnixSeconds(absl::Time time) { return absl::ToUnixMillis(time) / 1000.0; }

// What is not set is left out.
Json Row(const AdapterSnapshot& adapter) {
  Json row = {{"name", adapter.name},
              {"state", StateLabel(adapter.state)},
              {"source", Printable(adapter.source)},
              {"base_model", Printable(adapter.description ? adapter.description->base_model : "")},
              {"revision", adapter.digest.revision},
              {"memory_bytes", adapter.memory_bytes},
              {"uses", adapter.use_count},
              {"in_flight", adapter.in_flight}};
  if (adapter.last_use_time) row["last_use"] = UnixSeconds(*adapter.last_use_time);
  if (adapter.pinned) row["pinned"] = true;
  if (!adapter.enabled) row["disabled"] = true;
  if (!adapter.error.ok()) row["error"] = std::string(adapter.error.message());
  return row;
}

Json States(const std::vector<AdapterSnapshot>& all) {
  Json states;
  for (AdapterState state : kAdapterStates) {
    states[StateLabel(state)] =
        std::count_if(all.begin(), all.end(), [&](const auto& a) { return a.state == state; });
  }
  return states;
}

Json Table(const std::vector<AdapterSnapshot>& all, const StatusQuery& query) {
  const std::vector<const AdapterSnapshot*> matching = Select(all, query);
  const size_t last_page = matching.empty() ? 0 : (matching.size() - 1) / kStatusRows;
  const size_t page = std::min(query.page, last_page);
  const size_t end = std::min(matching.size(), (page + 1) * kStatusRows);
  Json rows = Json::array();
  for (size_t i = page * kStatusRows; i < end; ++i) rows.push_back(Row(*matching[i]));
  return {{"matching", matching.size()},
          {"page", page},
          {"rows_per_page", kStatusRows},
          {"rows", std::move(rows)}};
}

Json Events(AdapterRegistry& registry) {
  Json events = Json::array();
  for (const EventPtr& event : registry.events().Last(kStatusEvents)) {
    Json out = {{"time", UnixSeconds(event->time)},
                {"type", EventName(event->type)},
                {"adapter", event->adapter.name},
                {"revision", event->adapter.digest.revision}};
    if (!event->adapter.error.ok()) out["error"] = std::string(event->adapter.error.message());
    events.push_back(std::move(out));
  }
  return events;
}

Json Methods(Metrics& metrics) {
  Json methods = Json::array();
  for (const RpcTotals& rpc : metrics.Totals()) {
    if (rpc.count == 0) continue;
    methods.push_back({{"method", rpc.service + "/" + rpc.method},
                       {"count", rpc.count},
                       {"errors", rpc.errors},
                       {"buckets", rpc.buckets}});
  }
  return methods;
}

}  // namespace

std::string StatusJson(const StatusSources& sources, bool ready, const StatusQuery& query) {
  const std::vector<AdapterSnapshot> all = ListEverything(sources.registry);
  const RegistryTotals totals = sources.registry.totals();
  const Json status = {{"time", UnixSeconds(absl::Now())},
                       {"version", sources.info.version()},
                       {"instance_id", sources.info.instance_id()},
                       {"start_time", sources.info.start_time().seconds()},
                       {"isa", sources.info.isa()},
                       {"threads", sources.info.threads()},
                       {"ready", ready},
                       {"states", States(all)},
                       {"memory",
                        {{"used_bytes", sources.registry.budget().used()},
                         {"budget_bytes", sources.registry.budget().limit()},
                         {"thrashing", totals.thrashing}}},
                       {"queue_length", sources.workers.queue_length()},
                       {"inflight_bytes", sources.metrics.inflight_bytes().Value()},
                       {"latency_bounds", Metrics::LatencyBounds()},
                       {"methods", Methods(sources.metrics)},
                       {"adapters", Table(all, query)},
                       {"events", Events(sources.registry)}};
  // A source's name need not be UTF-8.
  return status.dump(-1, ' ', false, Json::error_handler_t::replace);
}

const std::string& StatusPagePolicy() {
  // 'sha256-...' of the text between <TAG> and </TAG>.
  const auto digest = [](const std::string& tag) {
    const std::string& html = StatusPageHtml();
    const size_t begin = html.find("<" + tag + ">") + tag.size() + 2;
    const size_t end = html.find("</" + tag + ">");
    Sha256 sha256;
    sha256.Update(std::string_view(html).substr(begin, end - begin));
    return "'sha256-" + absl::Base64Escape(absl::HexStringToBytes(sha256.FinishHex())) + "'";
  };
  static const std::string policy = fmt::format(
      "default-src 'none'; script-src {}; style-src {}; img-src data:; "
      "connect-src 'self'; base-uri 'none'; form-action 'none'; "
      "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
      digest("script"), digest("style"));
  return policy;
}

}  // namespace adapterd
