#include "core/adapter/config_fields.h"

#include <fmt/format.h>

#include "core/base/quote.h"

namespace adapterd {
namespace {

// Compared as doubles first: what does not fit in an int64 must not be converted to one.
bool IsInteger(const ConfigJson& value, int64_t least, int64_t most) {
  return value.is_number_integer() && value.get<double>() >= static_cast<double>(least) &&
         value.get<double>() <= static_cast<double>(most);
}

}  // namespace

const ConfigJson* ConfigFields::FindEvenNull(std::string_view key) {
  asked_.emplace(key);
  const auto found = json_.find(key);
  return found == json_.end() ? nullptr : &*found;
}

const ConfigJson* ConfigFields::Find(std::string_view key) {
  const ConfigJson* value = FindEvenNull(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

Problem ConfigFields::ProblemAt(std::string_view key, std::string_view message) const {
  Problem problem;
  problem.file = file_;
  problem.field = Printable(key);
  problem.message = fmt::format("{}: {}", file_, message);
  return problem;
}

void ConfigFields::Refuse(Reason reason, std::string_view key, std::string_view message,
                          std::string expected, std::string actual) {
  Problem problem = ProblemAt(key, message);
  problem.reason = reason;
  problem.expected = std::move(expected);
  problem.actual = std::move(actual);
  problems_.Add(std::move(problem));
}

void ConfigFields::Unsupported(std::string_view key, std::string_view message) {
  unsupported_.emplace(key);
  Refuse(Reason::kUnsupportedAdapter, key, message);
}

void ConfigFields::Warn(std::string_view key, std::string_view message) {
  Problem problem = ProblemAt(key, message);
  problem.severity = Severity::kWarning;
  problem.reason = Reason::kMalformedConfig;
  problems_.Add(std::move(problem));
}

void ConfigFields::Malformed(std::string_view key, std::string_view expected,
                             const ConfigJson& value) {
  Refuse(Reason::kMalformedConfig, key,
         fmt::format("{} must be {}, found {}", Printable(key), expected, Shown(value)),
         std::string(expected), Shown(value));
}

std::string ConfigFields::String(std::string_view key) {
  const ConfigJson* value = Find(key);
  if (value == nullptr) return "";
  if (value->is_string()) return value->get<std::string>();
  Malformed(key, "a string or null", *value);
  return "";
}

bool ConfigFields::Bool(std::string_view key) {
  const ConfigJson* value = Find(key);
  if (value == nullptr) return false;
  if (value->is_boolean()) return value->get<bool>();
  Malformed(key, "true or false", *value);
  return false;
}

std::vector<std::string> ConfigFields::Names(std::string_view key) {
  const ConfigJson* value = Find(key);
  if (value == nullptr) return {};
  std::vector<std::string> names;
  bool valid = value->is_array() && value->size() <= kMaxConfigNames;
  for (size_t i = 0; valid && i < value->size(); ++i) {
    valid = (*value)[i].is_string();
    if (valid) names.push_back((*value)[i].get<std::string>());
    valid = valid && !names.back().empty();
  }
  if (valid) return names;
  Malformed(key, fmt::format("null or a list of at most {} names", kMaxConfigNames), *value);
  return {};
}

std::optional<double> ConfigFields::Number(std::string_view key, const ConfigJson& value) {
  if (value.is_number()) return value.get<double>();
  Malformed(key, "a number", value);
  return std::nullopt;
}

std::optional<int64_t> ConfigFields::Integer(std::string_view key, const ConfigJson& value,
                                             int64_t least, int64_t most) {
  if (IsInteger(value, least, most)) return value.get<int64_t>();
  Malformed(key, fmt::format("a whole number from {} to {}", least, most), value);
  return std::nullopt;
}

std::optional<std::vector<int64_t>> ConfigFields::Integers(std::string_view key,
                                                           const ConfigJson& value, int64_t least,
                                                           int64_t most, size_t most_numbers) {
  std::vector<int64_t> numbers;
  bool valid = value.is_array() && value.size() <= most_numbers;
  for (size_t i = 0; valid && i < value.size(); ++i) {
    valid = IsInteger(value[i], least, most);
    if (valid) numbers.push_back(value[i].get<int64_t>());
  }
  if (valid) return numbers;
  Malformed(
      key,
      fmt::format("a list of at most {} whole numbers from {} to {}", most_numbers, least, most),
      value);
  return std::nullopt;
}

std::optional<std::vector<std::string>> ConfigFields::Strings(std::string_view key,
                                                              const ConfigJson& value) {
  if (value.is_string()) return std::vector<std::string>{value.get<std::string>()};
  std::vector<std::string> names;
  bool valid = value.is_array() && value.size() <= kMaxConfigNames;
  for (size_t i = 0; valid && i < value.size(); ++i) {
    valid = value[i].is_string();
    if (valid) names.push_back(value[i].get<std::string>());
  }
  if (valid) return names;
  Malformed(key, fmt::format("a string or a list of at most {} strings", kMaxConfigNames), value);
  return std::nullopt;
}

std::vector<std::pair<std::string, const ConfigJson*>> ConfigFields::UnknownTruthyKeys() const {
  std::vector<std::pair<std::string, const ConfigJson*>> keys;
  for (const auto& [key, value] : json_.items()) {
    if (!asked_.contains(key) && IsTruthy(value)) keys.emplace_back(key, &value);
  }
  return keys;
}

}  // namespace adapterd
