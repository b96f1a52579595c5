#include "tests/fuzz/target.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <utility>

#include "tests/fuzz/property.h"

namespace adapterd::fuzz {
namespace {

int64_t& CountOf(const Target& target, std::string_view deep_check) {
  // Never destroyed: read at exit.
  static auto* counts = new std::map<std::pair<std::string_view, std::string_view>, int64_t>();
  return (*counts)[{target.name, deep_check}];
}

}  // namespace

std::span<const Target* const> AllTargets() {
  static const Target* const kTargets[] = {
      &SafetensorsTarget(), &PeftConfigTarget(),    &PeftKeyTarget(), &PeftPatternTarget(),
      &PeftOpenTarget(),    &TensorMessageTarget(), &GgufTarget(),    &KohyaKeyTarget()};
  return kTargets;
}

void NoteMessage(const Target& target, std::string_view message) {
  for (const DeepCheck& check : target.deep_checks) {
    const bool found =
        !check.message.empty() && message.find(check.message) != std::string_view::npos;
    if (found) ++CountOf(target, check.name);
  }
}

void Note(const Target& target, std::string_view deep_check) {
  const bool known = std::any_of(target.deep_checks.begin(), target.deep_checks.end(),
                                 [&](const DeepCheck& check) { return check.name == deep_check; });
  Require(known, "a noted deep check is in the target's table");
  ++CountOf(target, deep_check);
}

int64_t TimesReached(const Target& target, std::string_view deep_check) {
  return CountOf(target, deep_check);
}

void PrintReached(const Target& target) {
  for (const DeepCheck& check : target.deep_checks) {
    fmt::print(stderr, "reached {} {}\n", TimesReached(target, check.name), check.name);
  }
}

}  // namespace adapterd::fuzz
