#include "core/adapter/config_json.h"

#include <fmt/format.h>

#include "absl/status/status.h"
#include "core/base/quote.h"

namespace adapterd {

absl::StatusOr<ConfigJson> ParseConfigJson(std::string_view text) {
  bool too_deep = false;
  size_t keys = 0;
  const auto within_limits = [&](int depth, ConfigJson::parse_event_t event, const ConfigJson&) {
    too_deep |= depth > kMaxConfigDepth;
    keys += event == ConfigJson::parse_event_t::key ? 1 : 0;
    return !too_deep && keys <= kMaxConfigKeys;  // false: not kept
  };
  ConfigJson json;
  try {
    json = ConfigJson::parse(text, within_limits);
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(fmt::format("not JSON: {}", Printable(error.what())));
  }
  if (too_deep) {
    return absl::InvalidArgumentError(fmt::format("nested more than {} deep", kMaxConfigDepth));
  }
  if (keys > kMaxConfigKeys) {
    return absl::InvalidArgumentError(fmt::format("has more than {} keys", kMaxConfigKeys));
  }
  if (!json.is_object()) return absl::InvalidArgumentError("not a JSON object");
  return json;
}

bool IsTruthy(const ConfigJson& value) {
  switch (value.type()) {
    case ConfigJson::value_t::boolean:
      return value.get<bool>();
    case ConfigJson::value_t::number_integer:
    case ConfigJson::value_t::number_unsigned:
    case ConfigJson::value_t::number_float:
      return value.get<double>() != 0;
    case ConfigJson::value_t::string:
      return !value.get_ref<const std::string&>().empty();
    default:
      return !value.empty();
  }
}

std::string Shown(const ConfigJson& value) {
  return Printable(value.dump(-1, ' ', false, ConfigJson::error_handler_t::replace));
}

}  // namespace adapterd
