#include "core/formats/gguf.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <map>
#include <string>

#include "core/adapter/gguf_plan.h"
#include "core/base/checked_math.h"
#include "tests/fuzz/property.h"
#include "tests/fuzz/target.h"

namespace adapterd::fuzz {
namespace {

constexpr std::string_view kFileName = "adapter.gguf";
constexpr std::string_view kPlanned = "planned as modules";
constexpr std::string_view kReordered = "planned with rows in another order";
constexpr std::string_view kFitted = "accepted with data that fit";

constexpr DeepCheck kDeepChecks[] = {
    {kPlanned, ""},
    {kReordered, ""},
    {kFitted, ""},
    {"version", "2 and 3 are read"},
    {"big-endian", "big-endian"},
    {"tensor count", "tensors, more than the"},
    {"key count", "keys, more than the"},
    {"key twice", "is there twice"},
    {"nested arrays", "is an array of arrays"},
    {"array of an unknown type", "is an array of type"},
    {"value of an unknown type", "has a value of type"},
    {"alignment", "is not a power of two"},
    {"text beyond the file", "truncated: the value of key"},
    {"number of dimensions", "dimensions, from 1 to"},
    {"dimension beyond 2^63", "has a dimension of"},
    {"element count overflows", "overflows"},
    {"whole blocks", "rows of whole blocks"},
    {"ggml type", "is not read; F32"},
    {"name declared twice", "is declared twice"},
    {"overlap", "(overlap)"},
    {"hole", "(hole)"},
    {"unaligned", "(unaligned)"},
    {"offset beyond the file", "of the data, the file has"},
    {"truncated data", "truncated: its data take"},
    {"bytes left over", "bytes left over"},
    {"no adapter", "this is no adapter"},
    {"adapter type", "which is not supported"},
    {"architecture", "is not known here"},
    {"activated", "activated LoRA"},
    {"alpha's type", "is not an F32"},
    {"alpha is no number", "is not a finite number"},
    {"no rule", "no rule explains it"},
    {"partner", "beside it"},
    {"no module", "belongs to no module"},
    {"dimensions of a factor", "wrong number of dimensions"},
    {"empty factor", "is empty"},
    {"ranks", "another rank than its lora_a"},
    {"experts", "another number of experts"},
    {"no heads", "depends on the base model's attention heads"},
    {"wrong heads", "as the base model has them"},
    {"sizes of heads", "heads of another size"},
};

// A file that goes on with zeros behind `input`.
absl::StatusOr<GgufHeader> Parse(std::string_view input, int64_t file_bytes) {
  const auto read = [&](int64_t offset, std::span<std::byte> out) {
    Require(offset >= 0 && static_cast<int64_t>(out.size()) <= file_bytes - offset,
            "nothing is read beyond the end");
    const auto from = std::min<size_t>(offset, input.size());
    const size_t there = std::min(out.size(), input.size() - from);
    if (there > 0) std::memcpy(out.data(), input.data() + from, there);
    std::fill(out.begin() + there, out.end(), std::byte{});
    return absl::OkStatus();
  };
  auto header = ParseGguf(read, file_bytes, kFileName);
  if (!header.ok()) {
    RequireGoodError(GgufTarget(), header.status(),
                     {Reason::kMalformedTensorFile, Reason::kUnsupportedDtype});
  }
  return header;
}

void RequireLayout(const GgufHeader& header, int64_t file_bytes) {
  int64_t end = 0;
  for (const GgufTensor& tensor : header.tensors) {
    Require(tensor.offset >= end, "tensors do not overlap");
    Require(tensor.bytes >= 0 && tensor.bytes <= file_bytes - tensor.offset,
            "tensors lie in the file");
    end = tensor.offset + tensor.bytes;
  }
}

// What is planned lies where the header says, and what is not planned was reported.
void RequirePlan(const GgufHeader& header, std::optional<HeadCounts> heads) {
  ProblemList problems;
  const auto plan = BuildGgufPlan(header, kFileName, {heads, std::nullopt}, problems);
  RequireGoodProblems(
      GgufTarget(), problems,
      {Reason::kInvalidAdapter, Reason::kUnsupportedAdapter, Reason::kMalformedConfig,
       Reason::kBaseRequired, Reason::kBaseModelMismatch});
  Require(plan || problems.has_errors(), "without a plan there is an error");
  if (!plan || problems.has_errors()) return;
  Note(GgufTarget(), kPlanned);
  std::map<std::string, const GgufTensor*> left;
  for (const GgufTensor& tensor : header.tensors) left[tensor.name] = &tensor;
  for (size_t i = 0; i < plan->modules.size(); ++i) {
    const ModuleInfo& info = plan->manifest.modules[i];
    Require(info.pairs() > 0 && info.rank > 0 && info.columns() > 0 && info.out_features > 0,
            "a pair is not empty");
    Require(std::isfinite(info.scale), "a scale is a number");
    if (info.rope_heads > 0) {
      Require(info.out_features % (2 * info.rope_heads) == 0, "rows are those of whole heads");
      Note(GgufTarget(), kReordered);
    }
    const auto found = plan->manifest.index.Find({info.path, "", std::nullopt});
    Require(found.ok() && *found == i, "a module is found by its path");
    for (const PlannedTensor& tensor : plan->modules[i].tensors) {
      const GgufTensor* entry = left[tensor.name];
      Require(entry != nullptr, "no tensor is planned twice");
      Require(tensor.offset == entry->offset && tensor.bytes == entry->bytes &&
                  tensor.shape == entry->shape,
              "a tensor is planned as it is and where it lies");
      left.erase(tensor.name);
    }
  }
  for (const auto& [name, tensor] : left) {
    Require(name.ends_with("_norm.weight"), "every tensor is planned or a norm");
  }
}

void RequireAccepted(const GgufHeader& header, int64_t file_bytes) {
  RequireLayout(header, file_bytes);
  RequirePlan(header, std::nullopt);
  RequirePlan(header, HeadCounts{4, 2});
}

// The same header in front of as many data as its tensors take: a mutation of a shape would hardly
// ever come with the data that go with it.
void FitData(std::string_view input) {
  constexpr int64_t kLarge = int64_t{1} << 50;
  const auto large = Parse(input, kLarge);
  if (large.ok()) return;
  if (large.status().message().find("bytes left over") == absl::string_view::npos) return;
  for (const auto& [key, value] : GetErrorDetails(large.status()).metadata) {
    if (key != "expected") continue;
    int64_t end = 0;
    std::from_chars(value.data(), value.data() + value.size(), end);
    const auto fitted = Parse(input, end);
    if (!fitted.ok()) continue;  // the padding before no data at all is not there
    Note(GgufTarget(), kFitted);
    RequireAccepted(*fitted, end);
  }
}

void Run(std::string_view input) {
  FitData(input);
  const auto header = Parse(input, static_cast<int64_t>(input.size()));
  if (header.ok()) RequireAccepted(*header, static_cast<int64_t>(input.size()));
}

}  // namespace

const Target& GgufTarget() {
  static constexpr Target kTarget = {"gguf", Run, kDeepChecks};
  return kTarget;
}

}  // namespace adapterd::fuzz
