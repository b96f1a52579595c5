// Typed access to the keys of one config, which remembers what was asked for.
#ifndef ADAPTERD_CORE_ADAPTER_CONFIG_FIELDS_H_
#define ADAPTERD_CORE_ADAPTER_CONFIG_FIELDS_H_

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/adapter/config_json.h"
#include "core/adapter/problems.h"

namespace adapterd {

// Names in one list. Real lists have some hundred; PEFT shortens them when it saves.
inline constexpr size_t kMaxConfigNames = 100'000;

// Every reading method reports a value of the wrong type as MALFORMED_CONFIG, naming key, expected
// and found. Keeps references; not thread-safe.
class ConfigFields {
 public:
  ConfigFields(const ConfigJson& json, std::string file, ProblemList& problems)
      : json_(json), file_(std::move(file)), problems_(problems) {}

  // nullptr when the key is absent; null is a value here.
  const ConfigJson* FindEvenNull(std::string_view key);
  // nullptr when it is absent or null, which are the same for most keys.
  const ConfigJson* Find(std::string_view key);

  // "" when absent or refused.
  std::string String(std::string_view key);
  // False when absent or refused.
  bool Bool(std::string_view key);
  // A list of strings that are not empty: {} when absent or refused.
  std::vector<std::string> Names(std::string_view key);

  // Values that were found, under the name that problems call them by; nullopt: refused.
  std::optional<double> Number(std::string_view key, const ConfigJson& value);
  std::optional<int64_t> Integer(std::string_view key, const ConfigJson& value, int64_t least,
                                 int64_t most);
  // A list of strings, or one string.
  std::optional<std::vector<std::string>> Strings(std::string_view key, const ConfigJson& value);
  // A list of at most `most_numbers` whole numbers.
  std::optional<std::vector<int64_t>> Integers(std::string_view key, const ConfigJson& value,
                                               int64_t least, int64_t most, size_t most_numbers);

  void Malformed(std::string_view key, std::string_view expected, const ConfigJson& value);
  void Refuse(Reason reason, std::string_view key, std::string_view message,
              std::string expected = "", std::string actual = "");
  // UNSUPPORTED_ADAPTER.
  void Unsupported(std::string_view key, std::string_view message);
  void Warn(std::string_view key, std::string_view message);

  // Keys that nobody asked for and whose value is truthy, in file order, with it.
  std::vector<std::pair<std::string, const ConfigJson*>> UnknownTruthyKeys() const;
  // Those that Unsupported was called with.
  const std::set<std::string, std::less<>>& unsupported() const { return unsupported_; }

 private:
  Problem ProblemAt(std::string_view key, std::string_view message) const;

  const ConfigJson& json_;
  const std::string file_;
  ProblemList& problems_;
  std::set<std::string, std::less<>> asked_;
  std::set<std::string, std::less<>> unsupported_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_CONFIG_FIELDS_H_
