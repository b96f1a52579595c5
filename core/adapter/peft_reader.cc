#include "core/adapter/peft_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/adapter/revision.h"
#include "core/base/quote.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

// Reads front to back, a piece at a time.
class WeightsScan {
 public:
  WeightsScan(const InputFile& weights, const Cancellation& cancellation)
      : weights_(weights), cancellation_(cancellation) {}

  // Calls `visit` with each piece of [offset, offset + bytes). With room for all of it in `buffer`
  // that is where it ends up; else the buffer is reused for every piece.
  template <typename Visit>
  absl::Status Scan(int64_t offset, int64_t bytes, std::span<std::byte> buffer, Visit visit) {
    const bool keep = static_cast<int64_t>(buffer.size()) >= bytes;
    for (int64_t done = 0; done < bytes;) {
      RETURN_IF_ERROR(cancellation_.Check());
      const int64_t count = std::min(kReadBytes, bytes - done);
      const std::span<std::byte> piece = buffer.subspan(keep ? done : 0, count);
      RETURN_IF_ERROR(weights_.ReadAt(offset + done, piece));
      file_digest_.Update(piece);
      visit(std::span<const std::byte>(piece));
      done += count;
    }
    return absl::OkStatus();
  }

  std::string FileDigest() { return file_digest_.FinishHex(); }

 private:
  const InputFile& weights_;
  const Cancellation& cancellation_;
  Sha256 file_digest_;
};

struct TensorFacts {
  std::string sha256;
  bool finite = true;
};

absl::StatusOr<TensorFacts> ScanTensor(WeightsScan& scan, const PlannedTensor& tensor,
                                       std::span<std::byte> buffer) {
  TensorFacts facts;
  Sha256 digest;
  RETURN_IF_ERROR(
      scan.Scan(tensor.offset, tensor.bytes, buffer, [&](std::span<const std::byte> piece) {
        digest.Update(piece);
        const auto count = static_cast<int64_t>(piece.size()) / FloatBytes(tensor.dtype);
        facts.finite &= AllFinite(tensor.dtype, piece.data(), count);
      }));
  facts.sha256 = digest.FinishHex();
  return facts;
}

Problem NonFinite(const std::string& file, const ModuleInfo& module, bool is_lora_b) {
  const std::string& name = is_lora_b ? module.lora_b_tensor : module.lora_a_tensor;
  Problem problem;
  problem.reason = Reason::kNonFiniteWeights;
  problem.file = Printable(file);
  problem.tensor = Printable(name);
  problem.module = Printable(module.path);
  problem.message =
      fmt::format("tensor {} in {} holds NaN or infinite elements", Quoted(name), Printable(file));
  return problem;
}

}  // namespace

PeftReader::PeftReader(PeftPlan plan, InputFile config, InputFile weights)
    : manifest_(std::make_shared<const AdapterManifest>(std::move(plan.manifest))),
      tensors_(std::move(plan.tensors)),
      config_(std::move(config)),
      weights_(std::move(weights)) {
  for (const InputFile* file : {&config_, &weights_}) {
    identity_.files.emplace_back(file->name(), file->identity());
  }
}

absl::Status PeftReader::CheckUnchanged() const {
  RETURN_IF_ERROR(config_.CheckUnchanged());
  return weights_.CheckUnchanged();
}

absl::StatusOr<ContentDigest> PeftReader::Pass(const Cancellation& cancellation,
                                               ProblemList& problems,
                                               std::vector<ModuleFactors>* factors) {
  WeightsScan scan(weights_, cancellation);
  RevisionBuilder revision;
  std::vector<Problem> non_finite;
  AlignedBuffer scratch(kReadBytes);
  RETURN_IF_ERROR(
      scan.Scan(0, tensors_.front().offset, scratch.span(), [](std::span<const std::byte>) {}));
  for (const PlannedTensor& tensor : tensors_) {
    const ModuleInfo& module = manifest_->modules[tensor.module];
    AlignedBuffer kept(factors != nullptr ? tensor.bytes : 0);
    ASSIGN_OR_RETURN(const TensorFacts facts,
                     ScanTensor(scan, tensor, factors != nullptr ? kept.span() : scratch.span()));
    if (!facts.finite) {
      non_finite.push_back(NonFinite(weights_.name(), module, tensor.is_lora_b));
    }
    revision.Add(module.path, tensor.is_lora_b ? "lora_b" : "lora_a", module.scale, tensor.dtype,
                 tensor.shape, facts.sha256);
    if (factors == nullptr) continue;
    ModuleFactors& pair = (*factors)[tensor.module];
    (tensor.is_lora_b ? pair.lora_b : pair.lora_a) =
        Tensor(tensor.dtype, tensor.shape, std::move(kept));
  }
  // Before any verdict: half of one state and half of another says nothing about either.
  RETURN_IF_ERROR(CheckUnchanged());
  for (Problem& problem : non_finite) problems.Add(std::move(problem));
  RETURN_IF_ERROR(problems.ToStatus());
  return ContentDigest{revision.Finish(), scan.FileDigest()};
}

absl::StatusOr<std::shared_ptr<const Adapter>> PeftReader::Read(const Cancellation& cancellation,
                                                                ProblemList& problems) {
  std::vector<ModuleFactors> factors(manifest_->modules.size());
  ASSIGN_OR_RETURN(ContentDigest digest, Pass(cancellation, problems, &factors));
  return std::make_shared<const Adapter>(manifest_, std::move(digest), std::move(factors));
}

absl::StatusOr<ContentDigest> PeftReader::Digest(const Cancellation& cancellation,
                                                 ProblemList& problems) {
  return Pass(cancellation, problems, nullptr);
}

}  // namespace adapterd
