#include "core/adapter/peft_reader.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/adapter/revision.h"
#include "core/base/parallel.h"
#include "core/base/quote.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

// The role that a line of the revision names. What changes the meaning of the bytes is part of it.
std::string RevisionRole(const PlannedTensor& tensor, const ModuleInfo& info, bool swapped) {
  std::string role(RoleName(tensor.role));
  if (swapped) role += "_swapped";
  if (!info.token_ids.empty()) role = fmt::format("token_rows:{}", fmt::join(info.token_ids, ","));
  return role;
}

Problem NonFinite(const InputFile& file, const PlannedTensor& tensor, std::string_view module) {
  Problem problem;
  problem.reason = Reason::kNonFiniteWeights;
  problem.file = Printable(file.name());
  problem.tensor = Printable(tensor.name);
  problem.module = Printable(module);
  problem.message = fmt::format("tensor {} in {} holds NaN or infinite elements",
                                Quoted(tensor.name), Printable(file.name()));
  return problem;
}

float Larger(float x, float y) { return std::isnan(x) || x > y ? x : y; }

}  // namespace

PeftReader::PeftReader(PeftPlan plan, InputFile config, InputFile weights,
                       std::optional<BoundBase> base)
    : method_(plan.method),
      manifest_(std::make_shared<const AdapterManifest>(std::move(plan.manifest))),
      modules_(std::move(plan.modules)),
      order_(modules_.size()),
      shared_(std::move(plan.shared)),
      config_(std::move(config)),
      weights_(std::move(weights)),
      base_(std::move(base)) {
  std::iota(order_.begin(), order_.end(), 0);
  std::sort(order_.begin(), order_.end(), [this](size_t x, size_t y) {
    return modules_[x].tensors.front().offset < modules_[y].tensors.front().offset;
  });
  for (const InputFile* file : {&config_, &weights_}) {
    identity_.files.emplace_back(file->name(), file->identity());
  }
  if (base_) {
    const auto files = base_->model->identity();
    identity_.files.insert(identity_.files.end(), files.begin(), files.end());
  }
}

absl::Status PeftReader::CheckUnchanged() const {
  RETURN_IF_ERROR(config_.CheckUnchanged());
  RETURN_IF_ERROR(weights_.CheckUnchanged());
  return base_ ? base_->model->CheckUnchanged() : absl::OkStatus();
}

// Into `out`; when it has less room than the tensor has bytes, piece by piece, one over the other.
absl::StatusOr<PeftReader::TensorFacts> PeftReader::ReadTensor(
    const PlannedTensor& tensor, std::span<std::byte> out, const Cancellation& cancellation) const {
  TensorFacts facts;
  Sha256 digest;
  const bool keeps = static_cast<int64_t>(out.size()) >= tensor.bytes;
  for (int64_t done = 0; done < tensor.bytes;) {
    RETURN_IF_ERROR(cancellation.Check());
    const int64_t count = std::min(kReadBytes, tensor.bytes - done);
    const std::span<std::byte> piece = out.subspan(keeps ? done : 0, count);
    RETURN_IF_ERROR(weights_.ReadAt(tensor.offset + done, piece));
    digest.Update(piece);
    facts.max_magnitude =
        Larger(facts.max_magnitude,
               MaxMagnitude(tensor.dtype, piece.data(), count / FloatBytes(tensor.dtype)));
    done += count;
  }
  facts.sha256 = digest.FinishHex();
  return facts;
}

absl::StatusOr<Tensor> PeftReader::ReadInto(AlignedBuffer buffer, const PlannedTensor& tensor,
                                            const Cancellation& cancellation,
                                            TensorFacts& facts) const {
  ASSIGN_OR_RETURN(facts, ReadTensor(tensor, buffer.span(), cancellation));
  return Tensor(tensor.dtype, tensor.shape, std::move(buffer));
}

absl::Status PeftReader::ReadShared(const Cancellation& cancellation, ModuleFacts& facts) {
  for (const PlannedTensor& tensor : shared_) {
    Tensor& projection = tensor.role == TensorRole::kLoraA ? projections_.a : projections_.b;
    ASSIGN_OR_RETURN(projection, ReadInto(AlignedBuffer(tensor.bytes), tensor, cancellation,
                                          facts.tensors.emplace_back()));
  }
  return absl::OkStatus();
}

absl::Status PeftReader::DigestModule(size_t module, const Cancellation& cancellation,
                                      SpareBuffers& spares, ModuleFacts& facts) const {
  AlignedBuffer scratch = spares.Take(kReadBytes);
  for (const PlannedTensor& tensor : modules_[module].tensors) {
    ASSIGN_OR_RETURN(facts.tensors.emplace_back(),
                     ReadTensor(tensor, scratch.span(), cancellation));
  }
  spares.Give(std::move(scratch));
  return absl::OkStatus();
}

absl::Status PeftReader::ReadModule(size_t module, const Cancellation& cancellation,
                                    SpareBuffers& spares, ModuleSink& sink,
                                    ModuleFacts& facts) const {
  const PlannedModule& planned = modules_[module];
  StoredTensors stored(kTensorRoles);
  for (const PlannedTensor& tensor : planned.tensors) {
    // The factors alone: the sink keeps the rest, which should not be larger than it has to be.
    const bool is_factor = tensor.role == TensorRole::kLoraA || tensor.role == TensorRole::kLoraB;
    AlignedBuffer buffer = is_factor ? spares.Take(tensor.bytes) : AlignedBuffer(tensor.bytes);
    ASSIGN_OR_RETURN(
        stored[static_cast<size_t>(tensor.role)],
        ReadInto(std::move(buffer), tensor, cancellation, facts.tensors.emplace_back()));
  }
  ModuleTensors tensors = FoldTensors(method_, manifest_->modules[module], planned.swapped,
                                      std::move(stored), projections_);
  RETURN_IF_ERROR(sink.Take(module, tensors));
  spares.Give(std::move(tensors.lora_b).Release());
  spares.Give(std::move(tensors.lora_a).Release());
  return absl::OkStatus();
}

void PeftReader::Judge(const std::vector<ModuleFacts>& facts, const ModuleFacts& shared,
                       ProblemList& problems) const {
  std::vector<ModuleMagnitudes> magnitudes(modules_.size());
  const auto judge = [&](const PlannedTensor& tensor, const TensorFacts& told,
                         std::string_view path) {
    if (!std::isfinite(told.max_magnitude)) problems.Add(NonFinite(weights_, tensor, path));
  };
  for (size_t i = 0; i < shared_.size(); ++i) judge(shared_[i], shared.tensors[i], "");
  for (size_t module = 0; module < modules_.size(); ++module) {
    const std::vector<PlannedTensor>& tensors = modules_[module].tensors;
    for (size_t i = 0; i < tensors.size(); ++i) {
      const float max = facts[module].tensors[i].max_magnitude;
      judge(tensors[i], facts[module].tensors[i], manifest_->modules[module].path);
      magnitudes[module].any = Larger(magnitudes[module].any, max);
      const bool is_b =
          tensors[i].role == TensorRole::kLoraB || tensors[i].role == TensorRole::kLambdaB;
      if (is_b) magnitudes[module].lora_b = max;
    }
  }
  WarnOfSuspicions(*manifest_, magnitudes, Printable(weights_.name()), problems);
}

std::string PeftReader::Revision(const std::vector<ModuleFacts>& facts,
                                 const ModuleFacts& shared) const {
  RevisionBuilder revision;
  for (size_t i = 0; i < shared_.size(); ++i) {
    const bool is_a = shared_[i].role == TensorRole::kLoraA;
    revision.Add("", is_a ? "vera_a" : "vera_b", 1, shared_[i].dtype, shared_[i].shape,
                 shared.tensors[i].sha256);
  }
  for (size_t module = 0; module < modules_.size(); ++module) {
    const ModuleInfo& info = manifest_->modules[module];
    const PlannedModule& planned = modules_[module];
    for (size_t i = 0; i < planned.tensors.size(); ++i) {
      const PlannedTensor& tensor = planned.tensors[i];
      revision.Add(info.path, RevisionRole(tensor, info, planned.swapped), info.scale, tensor.dtype,
                   tensor.shape, facts[module].tensors[i].sha256);
    }
  }
  return revision.Finish();
}

absl::StatusOr<std::string> PeftReader::Read(ThreadPool& pool, const Cancellation& cancellation,
                                             ModuleSink* sink, ProblemList& problems) {
  ModuleFacts shared;
  SpareBuffers spares;
  std::vector<ModuleFacts> facts(modules_.size());
  absl::Status read = ReadShared(cancellation, shared);
  if (read.ok()) {
    read = ParallelFor(pool, static_cast<int64_t>(order_.size()), cancellation, [&](int64_t i) {
      const size_t module = order_[i];
      return sink == nullptr ? DigestModule(module, cancellation, spares, facts[module])
                             : ReadModule(module, cancellation, spares, *sink, facts[module]);
    });
  }
  RETURN_IF_ERROR(read);
  // Before any verdict: half of one state and half of another says nothing about either.
  RETURN_IF_ERROR(CheckUnchanged());
  Judge(facts, shared, problems);
  RETURN_IF_ERROR(problems.ToStatus());
  return Revision(facts, shared);
}

absl::StatusOr<std::string> PeftReader::WeightsDigest(const Cancellation& cancellation) {
  Sha256 digest;
  AlignedBuffer scratch(std::min(kReadBytes, weights_.size()));
  for (int64_t done = 0; done < weights_.size();) {
    RETURN_IF_ERROR(cancellation.Check());
    const auto piece = scratch.span().first(std::min(kReadBytes, weights_.size() - done));
    RETURN_IF_ERROR(weights_.ReadAt(done, piece));
    digest.Update(piece);
    done += static_cast<int64_t>(piece.size());
  }
  RETURN_IF_ERROR(weights_.CheckUnchanged());
  return digest.FinishHex();
}

}  // namespace adapterd
