// All that is wrong or suspicious about a source, collected instead of stopping at the first.
#ifndef ADAPTERD_CORE_ADAPTER_PROBLEMS_H_
#define ADAPTERD_CORE_ADAPTER_PROBLEMS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/base/error.h"

namespace adapterd {

enum class Severity { kError, kWarning };

// Empty strings: not about one.
struct Problem {
  Severity severity = Severity::kError;
  Reason reason = Reason::kInternal;  // of a warning: the kind of thing it is about
  std::string message;                // names what was expected and what was found
  std::string file;
  std::string tensor;
  std::string module;
  std::string field;     // key of the config
  std::string expected;  // as the error metadata
  std::string actual;
};

// A file can be wrong in a million places; nobody reads more than this.
inline constexpr size_t kMaxProblems = 1000;

// Not thread-safe: belongs to one reading of one source.
class ProblemList {
 public:
  // Keeps at most kMaxProblems, errors before warnings when it has to choose.
  void Add(Problem problem);
  // An error that came as a status; its metadata fills file, tensor, module and field.
  void Add(const absl::Status& status);

  bool has_errors() const { return errors_ > 0; }
  const std::vector<Problem>& items() const { return items_; }  // in the order found
  std::vector<std::string> warnings() const;

  // OK without errors, else the first error as a status. When there are more, the message ends by
  // saying how many.
  absl::Status ToStatus() const;

 private:
  std::vector<Problem> items_;
  size_t errors_ = 0;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PROBLEMS_H_
