#include "core/compose/composition.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/status_macros.h"
#include "core/compute/svd.h"
#include "core/compute/svd_signs.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

class FactorRows : public RowSource {
 public:
  explicit FactorRows(const Tensor& factor) : factor_(AsMatrix(factor)) {}
  absl::Status Read(int64_t first, int64_t count, float* rows) const override {
    ConvertToF32(factor_.dtype, factor_.Rows(first, count).data, rows, count * factor_.cols);
    return absl::OkStatus();
  }

 private:
  MatrixView factor_;
};

class PairRows : public RowSource {
 public:
  explicit PairRows(DeltaRows delta) : delta_(std::move(delta)) {}
  absl::Status Read(int64_t first, int64_t count, float* rows) const override {
    return delta_.Read(first, count, rows);
  }

 private:
  DeltaRows delta_;
};

float* Floats(AlignedBuffer& buffer) { return reinterpret_cast<float*>(buffer.data()); }

std::span<const float> FloatsOf(const Tensor& tensor) {
  return {reinterpret_cast<const float*>(tensor.bytes().data()),
          tensor.bytes().size() / sizeof(float)};
}

// As torch.quantile: between the two nearest elements, in proportion.
float Quantile(std::vector<float>& values, double quantile) {
  const double place = quantile * static_cast<double>(values.size() - 1);
  const auto below = values.begin() + static_cast<int64_t>(place);
  std::ranges::nth_element(values, below);
  const double part = place - std::floor(place);
  if (part == 0) return *below;
  const double above = *std::min_element(below + 1, values.end());
  return static_cast<float>(*below + part * (above - *below));
}

Tensor Clamped(const Tensor& factor, float limit) {
  AlignedBuffer buffer(factor.bytes().size());
  std::ranges::transform(FloatsOf(factor), Floats(buffer),
                         [&](float value) { return std::min(std::max(value, -limit), limit); });
  return Tensor(DType::kF32, factor.shape(), std::move(buffer));
}

void Clamp(double quantile, TruncatedSvd& svd) {
  const auto b = FloatsOf(svd.lora_b);
  const auto a = FloatsOf(svd.lora_a);
  std::vector<float> values(b.begin(), b.end());
  values.insert(values.end(), a.begin(), a.end());
  const float limit = Quantile(values, quantile);
  svd.lora_a = Clamped(svd.lora_a, limit);
  svd.lora_b = Clamped(svd.lora_b, limit);
}

// A's of all, times their factors, above each other; B's beside each other.
Tensor CatA(const std::vector<StoredPair>& stored, const std::vector<double>& factors) {
  int64_t rank = 0;
  for (const StoredPair& pair : stored) rank += pair.lora_a.shape()[0];
  const int64_t cols = stored[0].lora_a.shape()[1];
  AlignedBuffer buffer(rank * cols * sizeof(float));
  float* to = Floats(buffer);
  for (size_t i = 0; i < stored.size(); ++i) {
    const MatrixView a = AsMatrix(stored[i].lora_a);
    const int64_t count = a.rows * a.cols;
    ConvertToF32(a.dtype, a.data, to, count);
    for (int64_t j = 0; j < count; ++j, ++to) *to = static_cast<float>(factors[i] * *to);
  }
  return Tensor(DType::kF32, {rank, cols}, std::move(buffer));
}

Tensor CatB(const std::vector<StoredPair>& stored) {
  int64_t rank = 0;
  for (const StoredPair& pair : stored) rank += pair.lora_b.shape()[1];
  const int64_t rows = stored[0].lora_b.shape()[0];
  AlignedBuffer buffer(rows * rank * sizeof(float));
  float* to = Floats(buffer);
  for (int64_t row = 0; row < rows; ++row) {
    for (const StoredPair& pair : stored) {
      const MatrixView b = AsMatrix(pair.lora_b).Rows(row, 1);
      ConvertToF32(b.dtype, b.data, to, b.cols);
      to += b.cols;
    }
  }
  return Tensor(DType::kF32, {rows, rank}, std::move(buffer));
}

}  // namespace

MixRule Composition::Rule() const {
  return {traits_.pruning, spec_.density,
          traits_.elects ? spec_.majority_sign : SignElection::kNone};
}

absl::StatusOr<Tensor> Composition::MixFactors(const std::vector<Part>& parts,
                                               const std::vector<StoredPair>& stored,
                                               TensorRole role,
                                               const Cancellation& cancellation) const {
  const bool is_a = role == TensorRole::kLoraA;
  std::vector<MixInput> inputs;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    // The root of the whole factor on both sides, its sign on one.
    const double root = std::sqrt(std::abs(part.factor()));
    const double weight = is_a && part.factor() < 0 ? -root : root;
    inputs.push_back(
        {std::make_unique<FactorRows>(is_a ? stored[i].lora_a : stored[i].lora_b), weight,
         RandomStream::For(spec_.seed, fmt::format("dare\n{}\n{}\n{}", part.position,
                                                   part.info().path, RoleName(role)))});
  }
  const MatrixView shape = AsMatrix(is_a ? stored[0].lora_a : stored[0].lora_b);
  AlignedBuffer mixed(shape.rows * shape.cols * sizeof(float));
  RETURN_IF_ERROR(Mix(pool_, inputs, Rule(), shape.rows, shape.cols, Floats(mixed), cancellation));
  return Tensor(DType::kF32, {shape.rows, shape.cols}, std::move(mixed));
}

absl::StatusOr<Tensor> Composition::MixDeltas(const std::vector<Part>& parts,
                                              const std::vector<StoredPair>& stored,
                                              const Cancellation& cancellation) const {
  std::vector<MixInput> inputs;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    const MergeTerm term = {AsMatrix(stored[i].lora_a), AsMatrix(stored[i].lora_b),
                            part.info().scale};
    ASSIGN_OR_RETURN(DeltaRows delta, DeltaRows::Create(kernels_, term));
    inputs.push_back({std::make_unique<PairRows>(std::move(delta)), part.input->weight,
                      RandomStream::For(spec_.seed, fmt::format("dare\n{}\n{}\ndelta",
                                                                part.position, part.info().path))});
  }
  const int64_t rows = parts[0].info().out_features;
  const int64_t cols = parts[0].info().columns();
  AlignedBuffer mixed(rows * cols * sizeof(float));
  RETURN_IF_ERROR(Mix(pool_, inputs, Rule(), rows, cols, Floats(mixed), cancellation));
  return Tensor(DType::kF32, {rows, cols}, std::move(mixed));
}

absl::StatusOr<Composition::Pair> Composition::Compute(size_t module,
                                                       const Cancellation& cancellation) const {
  const std::vector<Part>& parts = parts_[module];
  const int64_t rank = manifest_->modules[module].rank;
  std::vector<StoredPair> stored;
  std::vector<double> factors;
  for (const Part& part : parts) {
    stored.push_back(part.input->pair(part.module));
    factors.push_back(part.factor());
  }
  if (!traits_.svd) {
    if (spec_.method == ComposeMethod::kCat && inputs_.size() > 1) {
      return Pair{CatA(stored, factors), CatB(stored), {}};
    }
    ASSIGN_OR_RETURN(Tensor a, MixFactors(parts, stored, TensorRole::kLoraA, cancellation));
    ASSIGN_OR_RETURN(Tensor b, MixFactors(parts, stored, TensorRole::kLoraB, cancellation));
    return Pair{std::move(a), std::move(b), {}};
  }
  TruncatedSvd svd;
  if (traits_.pruning == Pruning::kNone) {
    std::vector<MergeTerm> terms;
    for (size_t i = 0; i < parts.size(); ++i) {
      terms.push_back({AsMatrix(stored[i].lora_a), AsMatrix(stored[i].lora_b), factors[i]});
    }
    ASSIGN_OR_RETURN(svd, LowRankSvd(terms, rank));
  } else {
    ASSIGN_OR_RETURN(const Tensor delta, MixDeltas(parts, stored, cancellation));
    ASSIGN_OR_RETURN(svd, DenseSvd(pool_, AsMatrix(delta), rank, cancellation));
  }
  if (spec_.svd_clamp) {
    const MatrixView b = AsMatrix(stored[0].lora_b);
    if (std::min(b.rows, AsMatrix(stored[0].lora_a).cols) <= kMaxSignedSide) {
      ASSIGN_OR_RETURN(const Tensor delta, MixDeltas(parts, stored, cancellation));
      RETURN_IF_ERROR(TurnAsLapack(AsMatrix(delta), svd));
    }
    Clamp(*spec_.svd_clamp, svd);
  }
  return Pair{std::move(svd.lora_a), std::move(svd.lora_b), std::move(svd.values)};
}

// Also computes modules that come after it, one a thread, unless one alone keeps all threads busy.
absl::Status Composition::ComputeFrom(size_t module, const Cancellation& cancellation) {
  const bool is_shared = traits_.svd && traits_.pruning != Pruning::kNone;
  std::vector<size_t> batch;
  const size_t threads = is_shared ? 1 : static_cast<size_t>(pool_.threads());
  for (size_t next = module; next < computed_.size() && batch.size() < threads; ++next) {
    if (!computed_[next]) batch.push_back(next);
  }
  std::vector<Pair> pairs(batch.size());
  const auto count = static_cast<int64_t>(batch.size());
  RETURN_IF_ERROR(ParallelFor(pool_, count, cancellation, [&](int64_t i) -> absl::Status {
    const std::string& path = manifest_->modules[batch[i]].path;
    absl::StatusOr<Pair> pair = Compute(batch[i], cancellation);
    if (!pair.ok()) return Annotate(pair.status(), "module", path);
    pairs[i] = *std::move(pair);
    for (const Tensor* factor : {&pairs[i].lora_a, &pairs[i].lora_b}) {
      const auto elements = static_cast<int64_t>(FloatsOf(*factor).size());
      if (std::isfinite(MaxMagnitude(DType::kF32, factor->bytes().data(), elements))) continue;
      return Error(Reason::kNonFiniteResult,
                   fmt::format("module {}: the composition does not fit into F32", path))
          .With("module", path);
    }
    return absl::OkStatus();
  }));
  for (size_t i = 0; i < batch.size(); ++i) {
    computed_[batch[i]] = true;
    if (traits_.svd) singular_values_[manifest_->modules[batch[i]].path] = pairs[i].values;
    ready_[batch[i]] = std::move(pairs[i]);
  }
  return absl::OkStatus();
}

absl::StatusOr<Tensor> Composition::Take(size_t module, TensorRole role,
                                         const Cancellation& cancellation) {
  if (!computed_[module]) RETURN_IF_ERROR(ComputeFrom(module, cancellation));
  Pair& pair = ready_.at(module);
  Tensor taken = std::move(role == TensorRole::kLoraA ? pair.lora_a : pair.lora_b);
  if (pair.lora_a.bytes().data() == nullptr && pair.lora_b.bytes().data() == nullptr) {
    ready_.erase(module);
  }
  return taken;
}

}  // namespace adapterd
