#include "tests/fuzz/property.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

namespace adapterd::fuzz {
namespace {

// One line of valid UTF-8.
bool IsPrintable(std::string_view text) {
  const auto is_control = [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte < 0x20 || byte == 0x7f;
  };
  if (std::any_of(text.begin(), text.end(), is_control)) return false;
  try {
    return !nlohmann::json(text).dump().empty();  // throws for broken UTF-8
  } catch (const nlohmann::json::exception&) {
    return false;
  }
}

void RequireText(std::string_view text, std::string_view property) {
  if (!IsPrintable(text)) fmt::print(stderr, "text: {:?}\n", text);
  Require(IsPrintable(text), property);
}

}  // namespace

void Require(bool holds, std::string_view property) {
  if (holds) return;
  fmt::print(stderr, "property does not hold: {}\n", property);
  std::abort();
}

void RequireGoodError(const Target& target, const absl::Status& status,
                      std::initializer_list<Reason> reasons) {
  const ErrorDetails details = GetErrorDetails(status);
  const std::string message(status.message().data(), status.message().size());
  if (std::find(reasons.begin(), reasons.end(), details.reason) == reasons.end()) {
    fmt::print(stderr, "{}: {}\n", ReasonName(details.reason), message);
  }
  Require(std::find(reasons.begin(), reasons.end(), details.reason) != reasons.end(),
          "the reason is one that the header lists");
  Require(!message.empty(), "an error has a message");
  Require(message.size() <= kMaxMessageBytes, "a message fits in a reply");
  RequireText(message, "a message is one printable line");
  size_t bytes = 2 * message.size();  // it travels twice
  for (const auto& [key, value] : details.metadata) {
    RequireText(value, "details are printable");
    bytes += key.size() + value.size();
  }
  Require(bytes <= kMaxErrorBytes, "a message and its details fit in a reply");
  NoteMessage(target, message);
}

void RequireGoodProblems(const Target& target, const ProblemList& problems,
                         std::initializer_list<Reason> reasons) {
  Require(problems.items().size() <= kMaxProblems, "the number of problems is limited");
  bool has_errors = false;
  for (const Problem& problem : problems.items()) {
    const absl::Status as_status = Error(problem.reason, problem.message)
                                       .With("file", problem.file)
                                       .With("tensor", problem.tensor)
                                       .With("module", problem.module)
                                       .With("field", problem.field)
                                       .With("expected", problem.expected)
                                       .With("actual", problem.actual);
    RequireGoodError(target, as_status, reasons);
    has_errors |= problem.severity == Severity::kError;
  }
  Require(problems.has_errors() == has_errors, "has_errors tells whether an error is listed");
  Require(problems.ToStatus().ok() == !has_errors, "ToStatus fails exactly with an error");
}

std::vector<std::string_view> SplitAtNul(std::string_view input, size_t limit) {
  std::vector<std::string_view> parts;
  while (parts.size() + 1 < limit) {
    const size_t nul = input.find('\0');
    if (nul == std::string_view::npos) break;
    parts.push_back(input.substr(0, nul));
    input.remove_prefix(nul + 1);
  }
  parts.push_back(input);
  return parts;
}

}  // namespace adapterd::fuzz
