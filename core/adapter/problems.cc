#include "core/adapter/problems.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace adapterd {
namespace {

constexpr std::pair<std::string_view, std::string Problem::*> kMetadata[] = {
    {"file", &Problem::file},   {"tensor", &Problem::tensor},     {"module", &Problem::module},
    {"field", &Problem::field}, {"expected", &Problem::expected}, {"actual", &Problem::actual},
};

bool IsWarning(const Problem& problem) { return problem.severity == Severity::kWarning; }

}  // namespace

void ProblemList::Add(Problem problem) {
  const bool is_error = !IsWarning(problem);
  if (is_error) ++errors_;
  if (items_.size() == kMaxProblems) {
    if (!is_error) return;
    const auto last_warning = std::find_if(items_.rbegin(), items_.rend(), IsWarning);
    if (last_warning == items_.rend()) return;
    items_.erase(std::next(last_warning).base());
  }
  items_.push_back(std::move(problem));
}

void ProblemList::Add(const absl::Status& status) {
  if (status.ok()) return;
  const ErrorDetails details = GetErrorDetails(status);
  Problem problem;
  problem.reason = details.reason;
  problem.message = std::string{status.message()};
  for (const auto& [key, value] : details.metadata) {
    for (const auto& [name, member] : kMetadata) {
      if (key == name) problem.*member = value;
    }
  }
  Add(std::move(problem));
}

std::vector<std::string> ProblemList::warnings() const {
  std::vector<std::string> texts;
  for (const Problem& problem : items_) {
    if (IsWarning(problem)) texts.push_back(problem.message);
  }
  return texts;
}

absl::Status ProblemList::ToStatus() const {
  const auto first = std::find_if_not(items_.begin(), items_.end(), IsWarning);
  if (first == items_.end()) return absl::OkStatus();
  std::string message = first->message;
  if (errors_ > 1) {
    message += fmt::format(" (and {} more {})", errors_ - 1, errors_ == 2 ? "error" : "errors");
  }
  absl::Status status = Error(first->reason, std::move(message));
  for (const auto& [key, member] : kMetadata) {
    const std::string& value = (*first).*member;
    if (!value.empty()) status = Annotate(status, key, value);
  }
  return status;
}

}  // namespace adapterd
