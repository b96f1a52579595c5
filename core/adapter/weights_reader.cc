#include "core/adapter/weights_reader.h"

#include <fmt/format.h>

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
#include "core/tensor/q8_0.h"

namespace adapterd {
namespace {

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

// Elements that lie in `bytes` of the file.
int64_t ElementsIn(const PlannedTensor& tensor, int64_t bytes) {
  if (tensor.encoding == Encoding::kQ8_0) return bytes / kQ8BlockBytes * kQ8BlockElements;
  return bytes / FloatBytes(tensor.dtype);
}

int64_t DecodedBytes(const PlannedTensor& tensor) {
  return ElementsIn(tensor, tensor.bytes) * FloatBytes(tensor.dtype);
}

float MaxMagnitudeOf(const PlannedTensor& tensor, std::span<const std::byte> piece) {
  const auto bytes = static_cast<int64_t>(piece.size());
  if (tensor.encoding == Encoding::kQ8_0) {
    return MaxMagnitudeQ8_0(piece.data(), bytes / kQ8BlockBytes);
  }
  return MaxMagnitude(tensor.dtype, piece.data(), ElementsIn(tensor, bytes));
}

float Larger(float x, float y) { return std::isnan(x) || x > y ? x : y; }

}  // namespace

WeightsReader::WeightsReader(WeightsPlan plan, std::optional<InputFile> config, InputFile weights,
                             std::optional<BoundBase> base)
    : manifest_(std::make_shared<const AdapterManifest>(std::move(plan.manifest))),
      modules_(std::move(plan.modules)),
      order_(modules_.size()),
      shared_(std::move(plan.shared)),
      shared_tensors_(kTensorRoles),
      config_(std::move(config)),
      weights_(std::move(weights)),
      base_(std::move(base)) {
  std::iota(order_.begin(), order_.end(), 0);
  std::sort(order_.begin(), order_.end(), [this](size_t x, size_t y) {
    return modules_[x].tensors.front().offset < modules_[y].tensors.front().offset;
  });
  if (config_) identity_.files.emplace_back(config_->name(), config_->identity());
  identity_.files.emplace_back(weights_.name(), weights_.identity());
  if (base_) {
    const auto files = base_->model->identity();
    identity_.files.insert(identity_.files.end(), files.begin(), files.end());
  }
}

absl::Status WeightsReader::CheckUnchanged() const {
  if (config_) RETURN_IF_ERROR(config_->CheckUnchanged());
  RETURN_IF_ERROR(weights_.CheckUnchanged());
  return base_ ? base_->model->CheckUnchanged() : absl::OkStatus();
}

// Into `out`; when it has less room than the tensor has bytes, piece by piece, one over the other.
// Q8_0 goes to `decoded` in its final form, unless that is null.
absl::StatusOr<WeightsReader::TensorFacts> WeightsReader::ReadTensor(
    const PlannedTensor& tensor, std::span<std::byte> out, float* decoded,
    const Cancellation& cancellation) const {
  TensorFacts facts;
  Sha256 digest;
  const int64_t piece_bytes =
      tensor.encoding == Encoding::kQ8_0 ? kReadBytes / kQ8BlockBytes * kQ8BlockBytes : kReadBytes;
  const bool keeps = static_cast<int64_t>(out.size()) >= tensor.bytes;
  for (int64_t done = 0; done < tensor.bytes;) {
    RETURN_IF_ERROR(cancellation.Check());
    const int64_t count = std::min(piece_bytes, tensor.bytes - done);
    const std::span<std::byte> piece = out.subspan(keeps ? done : 0, count);
    RETURN_IF_ERROR(weights_.ReadAt(tensor.offset + done, piece));
    digest.Update(piece);
    facts.max_magnitude = Larger(facts.max_magnitude, MaxMagnitudeOf(tensor, piece));
    if (decoded != nullptr) {
      DequantizeQ8_0(piece.data(), decoded, count / kQ8BlockBytes);
      decoded += ElementsIn(tensor, count);
    }
    done += count;
  }
  facts.sha256 = digest.FinishHex();
  return facts;
}

absl::StatusOr<Tensor> WeightsReader::ReadInto(AlignedBuffer buffer, const PlannedTensor& tensor,
                                               const Cancellation& cancellation,
                                               SpareBuffers& spares, TensorFacts& facts) const {
  if (tensor.encoding == Encoding::kQ8_0) {
    AlignedBuffer scratch = spares.Take(kReadBytes);
    auto* decoded = reinterpret_cast<float*>(buffer.data());
    ASSIGN_OR_RETURN(facts, ReadTensor(tensor, scratch.span(), decoded, cancellation));
    spares.Give(std::move(scratch));
  } else {
    ASSIGN_OR_RETURN(facts, ReadTensor(tensor, buffer.span(), nullptr, cancellation));
  }
  return Tensor(tensor.dtype, tensor.shape, std::move(buffer));
}

absl::Status WeightsReader::ReadShared(const Cancellation& cancellation, SpareBuffers& spares,
                                       ModuleFacts& facts) {
  for (const PlannedTensor& tensor : shared_) {
    ASSIGN_OR_RETURN(shared_tensors_[static_cast<size_t>(tensor.role)],
                     ReadInto(AlignedBuffer(DecodedBytes(tensor)), tensor, cancellation, spares,
                              facts.tensors.emplace_back()));
  }
  return absl::OkStatus();
}

absl::Status WeightsReader::DigestModule(size_t module, const Cancellation& cancellation,
                                         SpareBuffers& spares, ModuleFacts& facts) const {
  AlignedBuffer scratch = spares.Take(kReadBytes);
  for (const PlannedTensor& tensor : modules_[module].tensors) {
    ASSIGN_OR_RETURN(facts.tensors.emplace_back(),
                     ReadTensor(tensor, scratch.span(), nullptr, cancellation));
  }
  spares.Give(std::move(scratch));
  return absl::OkStatus();
}

absl::Status WeightsReader::ReadModule(size_t module, const Cancellation& cancellation,
                                       SpareBuffers& spares, ModuleSink& sink,
                                       ModuleFacts& facts) const {
  const PlannedModule& planned = modules_[module];
  StoredTensors stored(kTensorRoles);
  for (const PlannedTensor& tensor : planned.tensors) {
    // The factors alone: the sink keeps the rest, which should not be larger than it has to be.
    const bool is_factor = tensor.role == TensorRole::kLoraA || tensor.role == TensorRole::kLoraB;
    const int64_t bytes = DecodedBytes(tensor);
    AlignedBuffer buffer = is_factor ? spares.Take(bytes) : AlignedBuffer(bytes);
    ASSIGN_OR_RETURN(
        stored[static_cast<size_t>(tensor.role)],
        ReadInto(std::move(buffer), tensor, cancellation, spares, facts.tensors.emplace_back()));
  }
  ModuleTensors tensors =
      planned.fold ? planned.fold(manifest_->modules[module], std::move(stored), shared_tensors_)
                   : FoldNothing(std::move(stored));
  RETURN_IF_ERROR(sink.Take(module, tensors));
  spares.Give(std::move(tensors.lora_b).Release());
  spares.Give(std::move(tensors.lora_a).Release());
  return absl::OkStatus();
}

void WeightsReader::Judge(const std::vector<ModuleFacts>& facts, const ModuleFacts& shared,
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

std::string WeightsReader::Revision(const std::vector<ModuleFacts>& facts,
                                    const ModuleFacts& shared) const {
  RevisionBuilder revision;
  const auto add = [&revision](const PlannedTensor& tensor, std::string_view path, double scale,
                               const TensorFacts& told) {
    const std::string_view role =
        tensor.revision_role.empty() ? RoleName(tensor.role) : tensor.revision_role;
    const std::string_view dtype =
        tensor.encoding == Encoding::kQ8_0 ? "Q8_0" : DTypeName(tensor.dtype);
    revision.Add(path, role, scale, dtype, tensor.shape, told.sha256);
  };
  for (size_t i = 0; i < shared_.size(); ++i) add(shared_[i], "", 1, shared.tensors[i]);
  for (size_t module = 0; module < modules_.size(); ++module) {
    const ModuleInfo& info = manifest_->modules[module];
    const PlannedModule& planned = modules_[module];
    const std::string& path = planned.revision_path.empty() ? info.path : planned.revision_path;
    for (size_t i = 0; i < planned.tensors.size(); ++i) {
      add(planned.tensors[i], path, info.scale, facts[module].tensors[i]);
    }
  }
  return revision.Finish();
}

absl::StatusOr<std::string> WeightsReader::Read(ThreadPool& pool, const Cancellation& cancellation,
                                                ModuleSink* sink, ProblemList& problems) {
  ModuleFacts shared;
  SpareBuffers spares;
  std::vector<ModuleFacts> facts(modules_.size());
  absl::Status read = ReadShared(cancellation, spares, shared);
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

absl::StatusOr<std::string> WeightsReader::WeightsDigest(const Cancellation& cancellation) {
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
