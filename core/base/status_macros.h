// Early returns for absl::Status and absl::StatusOr. Debian 12's Abseil has none.
#ifndef ADAPTERD_CORE_BASE_STATUS_MACROS_H_
#define ADAPTERD_CORE_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define ADAPTERD_CONCAT_INNER(a, b) a##b
#define ADAPTERD_CONCAT(a, b) ADAPTERD_CONCAT_INNER(a, b)

// NOLINTBEGIN(bugprone-macro-parentheses): a declaration cannot stand in parentheses.

// Returns from the enclosing function when `expr` is not OK.
#define RETURN_IF_ERROR(expr)                          \
  do {                                                 \
    absl::Status adapterd_status = (expr);             \
    if (!adapterd_status.ok()) return adapterd_status; \
  } while (false)

// ASSIGN_OR_RETURN(auto x, F()): x takes the value, or the enclosing function returns the error.
#define ASSIGN_OR_RETURN(lhs, expr) \
  ASSIGN_OR_RETURN_INNER(ADAPTERD_CONCAT(adapterd_or_, __LINE__), lhs, expr)
#define ASSIGN_OR_RETURN_INNER(var, lhs, expr)   \
  auto var = (expr);                             \
  if (!var.ok()) return std::move(var).status(); \
  lhs = *std::move(var)

// NOLINTEND(bugprone-macro-parentheses)

#endif  // ADAPTERD_CORE_BASE_STATUS_MACROS_H_
