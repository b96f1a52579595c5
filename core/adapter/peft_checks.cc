#include "core/adapter/peft_checks.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/base/quote.h"

namespace adapterd {
namespace {

std::string_view NameOf(TensorRole role, bool is_embedding) {
  switch (role) {
    case TensorRole::kLoraA:
      return is_embedding ? "lora_embedding_A" : "lora_A";
    case TensorRole::kLoraB:
      return is_embedding ? "lora_embedding_B" : "lora_B";
    case TensorRole::kLoraE:
      return "lora_E";
    case TensorRole::kLambdaB:
      return "vera_lambda_b";
    case TensorRole::kLambdaD:
      return "vera_lambda_d";
    case TensorRole::kLoraBias:
      return "lora_B.bias";
    default:
      return "lora_magnitude_vector";
  }
}

bool IsEmpty(const SafetensorsEntry& tensor) {
  return std::find(tensor.shape.begin(), tensor.shape.end(), 0) != tensor.shape.end();
}

}  // namespace

void PlannedPart::Add(const SafetensorsEntry& tensor, TensorRole role) {
  tensors.tensors.push_back(
      {role, tensor.dtype, tensor.shape, tensor.offset, tensor.bytes, tensor.name});
}

int64_t ElementsOf(const SafetensorsEntry& tensor) {
  int64_t elements = 1;
  for (const int64_t dim : tensor.shape) elements *= dim;
  return elements;
}

void TensorChecks::Refuse(TensorProblem problem) { Report(file_, std::move(problem), problems_); }

void TensorChecks::Refuse(const absl::Status& status) {
  problems_.Add(Annotate(status, "file", file_));
}

bool TensorChecks::Values(const SafetensorsEntry& tensor, std::string_view path,
                          std::string_view shape) {
  if (IsEmpty(tensor)) {
    Refuse({.tensor = &tensor,
            .module = path,
            .what = "is empty",
            .expected = std::string(shape),
            .actual = ShapeString(tensor.shape)});
    return false;
  }
  if (IsComputeFloat(tensor.dtype)) return true;
  Refuse({.reason = Reason::kUnsupportedDtype,
          .tensor = &tensor,
          .module = path,
          .what = "has a dtype that weights of an adapter cannot have",
          .expected = "F32, F16 or BF16",
          .actual = std::string(DTypeName(tensor.dtype))});
  return false;
}

bool TensorChecks::Matrix(const SafetensorsEntry& tensor, std::string_view path,
                          std::string_view shape) {
  if (tensor.shape.size() == 2) return Values(tensor, path, shape);
  Refuse({.tensor = &tensor,
          .module = path,
          .what = IsEmpty(tensor) ? "is empty" : "is not 2-D",
          .expected = std::string(shape),
          .actual = ShapeString(tensor.shape)});
  return false;
}

bool TensorChecks::Vector(const SafetensorsEntry& tensor, std::string_view path, int64_t size) {
  const auto longer =
      std::count_if(tensor.shape.begin(), tensor.shape.end(), [](int64_t dim) { return dim != 1; });
  const std::string expected = fmt::format("[{}]", size);
  if (!tensor.shape.empty() && longer <= 1 && ElementsOf(tensor) == size) {
    return Values(tensor, path, expected);
  }
  Refuse({.tensor = &tensor,
          .module = path,
          .what = "does not fit its module",
          .expected = expected,
          .actual = ShapeString(tensor.shape)});
  return false;
}

bool TensorChecks::Ranks(const SafetensorsEntry& a, const SafetensorsEntry& b,
                         std::string_view path, int64_t blocks) {
  const int64_t columns = a.shape[0] / blocks;
  if (a.shape[0] % blocks == 0 && b.shape[1] == columns) return true;
  Refuse({.tensor = &b,
          .module = path,
          .what = "has another rank than its lora_A",
          .expected = fmt::format("[{}, {}]", b.shape[0], columns),
          .actual = ShapeString(b.shape)});
  return false;
}

bool TensorChecks::Complete(const PeftPair& pair, std::string_view path,
                            std::initializer_list<TensorRole> roles) {
  bool complete = true;
  for (const TensorRole role : roles) {
    if (pair.Get(role) != nullptr) continue;
    complete = false;
    Refuse({.tensor = pair.Any(),
            .module = path,
            .what = fmt::format("has no {} beside it: module {} is incomplete",
                                NameOf(role, pair.is_embedding), Quoted(path))});
  }
  return complete;
}

}  // namespace adapterd
