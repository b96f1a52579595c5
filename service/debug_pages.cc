#include "service/debug_pages.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

namespace adapterd {
namespace {

using Json = nlohmann::ordered_json;

struct OfMethod {
  int64_t open = 0;
  double oldest_seconds = 0;
};

}  // namespace

std::string CallsJson(const OpenCalls& calls, absl::Time now) {
  const std::vector<OpenCalls::Call> open = calls.List();
  std::map<std::string, OfMethod> methods;
  Json oldest = Json::array();
  for (const OpenCalls::Call& call : open) {
    const std::string method = fmt::format("{}/{}", call.service, call.method);
    const double seconds = absl::ToDoubleSeconds(now - call.start);
    OfMethod& of_method = methods[method];
    ++of_method.open;
    of_method.oldest_seconds = std::max(of_method.oldest_seconds, seconds);
    if (oldest.size() < kDebugCalls) {
      oldest.push_back({{"method", method}, {"request_id", call.request_id}, {"seconds", seconds}});
    }
  }
  Json by_method = Json::array();
  for (const auto& [method, of_method] : methods) {
    by_method.push_back({{"method", method},
                         {"open", of_method.open},
                         {"oldest_seconds", of_method.oldest_seconds}});
  }
  return Json{{"open", open.size()}, {"methods", by_method}, {"oldest", oldest}}.dump(
             2, ' ', false, Json::error_handler_t::replace) +
         "\n";
}

std::string PoolsJson(const NamedPools& pools) {
  Json all = Json::array();
  for (const auto& [name, pool] : pools) {
    all.push_back({{"pool", name}, {"threads", pool->threads()}, {"queued", pool->queue_length()}});
  }
  return Json{{"pools", all}}.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace adapterd
