#include "tests/fuzz/target.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <string>

#include "tests/fuzz/property.h"

namespace adapterd::fuzz {
namespace {

std::map<std::string_view, int64_t>& Counts() {
  static auto* counts = new std::map<std::string_view, int64_t>();  // read at exit
  return *counts;
}

}  // namespace

std::span<const Target* const> AllTargets() {
  static constexpr const Target* kTargets[] = {&kSafetensors, &kPeftConfig, &kPeftKey,
                                               &kPeftPattern, &kPeftOpen};
  return kTargets;
}

void NoteMessage(const Target& target, std::string_view message) {
  for (const DeepCheck& check : target.deep_checks) {
    const bool found =
        !check.message.empty() && message.find(check.message) != std::string_view::npos;
    if (found) ++Counts()[check.name];
  }
}

void Note(const Target& target, std::string_view deep_check) {
  const bool known = std::any_of(target.deep_checks.begin(), target.deep_checks.end(),
                                 [&](const DeepCheck& check) { return check.name == deep_check; });
  Require(known, "a noted deep check is in the target's table");
  ++Counts()[deep_check];
}

int64_t TimesReached(const Target& target, std::string_view deep_check) {
  return Counts()[deep_check];
}

void PrintReached(const Target& target) {
  for (const DeepCheck& check : target.deep_checks) {
    fmt::print(stderr, "reached {} {}\n", TimesReached(target, check.name), check.name);
  }
}

}  // namespace adapterd::fuzz
