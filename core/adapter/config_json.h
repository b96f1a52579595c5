// JSON of adapter configs, read as Python reads it.
#ifndef ADAPTERD_CORE_ADAPTER_CONFIG_JSON_H_
#define ADAPTERD_CORE_ADAPTER_CONFIG_JSON_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace adapterd {

// Ordered, because the order of patterns has a meaning. A key that comes twice keeps its first
// place and its last value, as in Python.
using ConfigJson = nlohmann::ordered_json;

// Written by hand or by json.dumps: kilobytes. The largest real ones list a rank a module.
inline constexpr int64_t kMaxConfigBytes = 10'000'000;
// PEFT's own configs nest three deep.
inline constexpr int kMaxConfigDepth = 64;
// Ordered objects are searched from end to end: this many keys cost up to two seconds.
inline constexpr size_t kMaxConfigKeys = 20'000;
// Of a few bytes of text each, but of some 50 in memory. The masks of AdaLoRA have a value a rank.
inline constexpr size_t kMaxConfigValues = 1'000'000;

// INVALID_ARGUMENT when `text` is not a JSON object within the limits; NaN and Infinity, which
// Python takes, are not JSON. What is beyond a limit is not stored: reading stops there.
absl::StatusOr<ConfigJson> ParseConfigJson(std::string_view text);

// bool(value) in Python.
bool IsTruthy(const ConfigJson& value);

// `value` as JSON, fit for a message.
std::string Shown(const ConfigJson& value);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_CONFIG_JSON_H_
