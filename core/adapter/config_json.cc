#include "core/adapter/config_json.h"

#include <fmt/format.h>

#include <utility>

#include "absl/status/status.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

// Sees the events of a text before any of it is stored. A callback that returns false ends the
// reading; `fault` then says why.
class LimitChecker {
 public:
  const std::string& fault() const { return fault_; }

  // The interface that nlohmann::json::sax_parse asks for, with its names.
  bool null() { return OnValue(); }
  bool boolean(bool) { return OnValue(); }
  bool number_integer(int64_t) { return OnValue(); }
  bool number_unsigned(uint64_t) { return OnValue(); }
  bool number_float(double, const std::string&) { return OnValue(); }
  bool string(std::string&) { return OnValue(); }
  bool binary(ConfigJson::binary_t&) { return OnValue(); }
  bool start_object(size_t) { return OnStart(); }
  bool end_object() { return OnEnd(); }
  bool start_array(size_t) { return OnStart(); }
  bool end_array() { return OnEnd(); }
  bool key(std::string&) {
    return ++keys_ <= kMaxConfigKeys || Fail(fmt::format("has more than {} keys", kMaxConfigKeys));
  }
  bool parse_error(size_t position, const std::string& token, const nlohmann::json::exception&) {
    // The first bytes of what Python's json.dumps writes for numbers that are none.
    const bool not_finite = token.ends_with('N') || token.ends_with('I');
    return Fail(fmt::format("not JSON: {} at byte {} is not expected there{}", Quoted(token),
                            position, not_finite ? " (NaN and Infinity are no JSON numbers)" : ""));
  }

 private:
  bool Fail(std::string fault) {
    fault_ = std::move(fault);
    return false;
  }
  bool OnValue() {
    return ++values_ <= kMaxConfigValues ||
           Fail(fmt::format("has more than {} values", kMaxConfigValues));
  }
  bool OnStart() {
    if (++depth_ > kMaxConfigDepth) {
      return Fail(fmt::format("nested more than {} deep", kMaxConfigDepth));
    }
    return OnValue();
  }
  bool OnEnd() {
    --depth_;
    return true;
  }

  std::string fault_;
  int depth_ = 0;
  size_t keys_ = 0;
  size_t values_ = 0;
};

}  // namespace

absl::StatusOr<ConfigJson> ParseConfigJson(std::string_view text) {
  LimitChecker checker;
  if (!ConfigJson::sax_parse(text, &checker)) return absl::InvalidArgumentError(checker.fault());
  ConfigJson json = ConfigJson::parse(text, nullptr, /*allow_exceptions=*/false);
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
