// Checks of single tensors of a PEFT weights file, shared by what plans pairs and replacements.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_CHECKS_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_CHECKS_H_

#include <initializer_list>
#include <string>
#include <string_view>

#include "core/adapter/peft_tensors.h"
#include "core/adapter/problems.h"
#include "core/adapter/weights_plan.h"

namespace adapterd {

// One module while it is planned.
struct PlannedPart {
  ModuleInfo info;
  PlannedModule tensors;
  bool swapped = false;  // kExperts: see ExpertsAreSwapped

  void Add(const SafetensorsEntry& tensor, TensorRole role);
};

// Product of the dimensions of a tensor that lies in a file, which therefore does not overflow.
int64_t ElementsOf(const SafetensorsEntry& tensor);

// Every check reports what it finds, under the module's path, and says whether all is well.
class TensorChecks {
 public:
  TensorChecks(std::string_view file, ProblemList& problems) : file_(file), problems_(problems) {}

  void Refuse(TensorProblem problem);
  void Refuse(const absl::Status& status);

  // No dimension is zero, and the elements are floats that arithmetic takes. `shape` is what errors
  // call the expected one.
  bool Values(const SafetensorsEntry& tensor, std::string_view path, std::string_view shape);
  // Values of two dimensions.
  bool Matrix(const SafetensorsEntry& tensor, std::string_view path, std::string_view shape);
  // `size` values in a row, maybe with dimensions of one element around them.
  bool Vector(const SafetensorsEntry& tensor, std::string_view path, int64_t size);
  // A [rank, ...] and B [..., rank / blocks] have one rank. REQUIRES: both passed Matrix or Values.
  bool Ranks(const SafetensorsEntry& a, const SafetensorsEntry& b, std::string_view path,
             int64_t blocks = 1);
  // The pair has all of `roles`.
  bool Complete(const PeftPair& pair, std::string_view path,
                std::initializer_list<TensorRole> roles);

  const std::string& file() const { return file_; }

 private:
  const std::string file_;
  ProblemList& problems_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_CHECKS_H_
