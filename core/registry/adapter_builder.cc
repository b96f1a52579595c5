#include "core/registry/adapter_builder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/compute/dora_norms.h"
#include "core/registry/derived_digest.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

std::vector<float> ToFloats(const Tensor& tensor) {
  const auto count = static_cast<int64_t>(tensor.bytes().size()) / FloatBytes(tensor.dtype());
  std::vector<float> values(count);
  ConvertToF32(tensor.dtype(), tensor.bytes().data(), values.data(), count);
  return values;
}

// Whether a base of this name may belong to the architectures whose embedding modules scale what
// they look up (Gemma's and the Bart family's): without its config nobody knows by how much.
bool MayScaleEmbeddings(const std::string& base_model) {
  const std::string name = absl::AsciiStrToLower(base_model);
  for (const char* family : {"gemma", "bart", "m2m", "nllb", "pegasus", "marian", "opus-mt",
                             "blenderbot", "xglm", "prophetnet", "bigbird"}) {
    if (name.find(family) != std::string::npos) return true;
  }
  return false;
}

}  // namespace

AdapterBuilder::AdapterBuilder(const Kernels& kernels, std::shared_ptr<MemoryBudget> budget,
                               std::shared_ptr<const AdapterManifest> manifest,
                               Reservation reservation)
    : kernels_(kernels),
      adapter_(new LoadedAdapter(kernels, std::move(budget), std::move(manifest),
                                 std::move(reservation))) {}

absl::Status AdapterBuilder::Take(size_t module, ModuleTensors& tensors) {
  const ModuleInfo& info = adapter_->manifest().modules[module];
  // Experts lie one after the other; a convolution's kernel counts as columns.
  const MatrixView all_a = {tensors.lora_a.dtype(), info.pairs() * info.rank, info.columns(),
                            tensors.lora_a.bytes().data()};
  const MatrixView all_b = {tensors.lora_b.dtype(), info.pairs() * info.out_features, info.rank,
                            tensors.lora_b.bytes().data()};
  for (int64_t pair = 0; pair < info.pairs(); ++pair) {
    const MatrixView a = all_a.Rows(pair * info.rank, info.rank);
    const MatrixView b = all_b.Rows(pair * info.out_features, info.out_features);
    ASSIGN_OR_RETURN(auto packed,
                     info.kind == ModuleKind::kEmbedding
                         ? PackedPair::PackEmbedding(kernels_, a, b)
                         : PackedPair::Pack(kernels_, a, b, FirstForm(kernels_, info)));
    LoadedAdapter::Publish(adapter_->SlotOf(module, pair), std::move(packed));
  }
  ModuleExtras& extras = adapter_->extras_[module];
  extras.lora_bias_f32 = ToFloats(tensors.lora_bias);
  extras.magnitude_f32 = ToFloats(tensors.magnitude);
  extras.lora_bias = std::move(tensors.lora_bias);
  extras.magnitude = std::move(tensors.magnitude);
  extras.weight = std::move(tensors.weight);
  extras.bias = std::move(tensors.bias);
  if (!MayScaleEmbeddings(adapter_->manifest().base_model)) extras.embedding_scale = 1;
  return absl::OkStatus();
}

absl::StatusOr<DoraVectors> AdapterBuilder::ReadDora(size_t module, const BaseTensors& base,
                                                     const BaseBinding& binding, ThreadPool& pool,
                                                     const Cancellation& cancellation) const {
  const ModuleInfo& info = adapter_->manifest().modules[module];
  const CheckpointTensor& weight = *base.Find(binding.weight->tensor);
  const PairFactors factors = adapter_->Factors(module, 0);
  const MergeTerm term = {AsMatrix(factors.lora_a), AsMatrix(factors.lora_b), info.scale};
  const bool in_out = binding.weight->layout == BaseLayout::kInOut;
  const int64_t rows = in_out ? info.columns() : info.out_features;
  const int64_t cols = in_out ? info.out_features : info.columns();
  const auto layout = in_out ? WeightLayout::kInOut : WeightLayout::kOutIn;
  ASSIGN_OR_RETURN(DoraNorms norms, DoraNorms::Create(kernels_, term, layout, rows, cols));
  const int64_t row_bytes = cols * FloatBytes(weight.dtype);
  const int64_t block_rows = std::clamp<int64_t>(kBaseBlockBytes / row_bytes, 1, rows);
  AlignedBuffer block(block_rows * row_bytes);
  for (int64_t first = 0; first < rows; first += block_rows) {
    const int64_t count = std::min(block_rows, rows - first);
    const auto bytes = block.span().first(count * row_bytes);
    RETURN_IF_ERROR(base.ReadRows(weight, cols, first, bytes));
    RETURN_IF_ERROR(
        norms.Add(pool, first, {weight.dtype, count, cols, bytes.data()}, cancellation));
  }
  DoraVectors dora;
  dora.gain = DoraGains(adapter_->extras_[module].magnitude_f32, norms.Finish());
  for (const float gain : dora.gain) {
    if (std::isfinite(gain)) continue;
    return Error(
               Reason::kNonFiniteWeights,
               fmt::format("a row of {} in the base model, with its delta, has no usable norm for "
                           "DoRA",
                           binding.weight->tensor))
        .With("module", info.path)
        .With("tensor", binding.weight->tensor);
  }
  // The bias of the layer whose outputs are rescaled, which has the adapter's when that replaces
  // it.
  if (info.replaces_bias) {
    dora.base_bias = ToFloats(adapter_->extras_[module].bias);
  } else if (binding.bias) {
    const CheckpointTensor& bias = *base.Find(binding.bias->tensor);
    AlignedBuffer buffer(bias.bytes);
    RETURN_IF_ERROR(base.ReadRows(bias, info.out_features, 0, buffer.span()));
    dora.base_bias = ToFloats(Tensor(bias.dtype, bias.shape, std::move(buffer)));
  }
  return dora;
}

absl::Status AdapterBuilder::BindBase(const BoundBase& base, ThreadPool& pool,
                                      const Cancellation& cancellation) {
  const std::vector<ModuleInfo>& modules = adapter_->manifest().modules;
  for (size_t i = 0; i < modules.size(); ++i) {
    const BaseBinding& binding = base.bindings[i];
    if (!binding.weight) continue;
    ModuleExtras& extras = adapter_->extras_[i];
    extras.embedding_scale = binding.embedding_scale;
    // Norms of the checkpoint's weight say nothing of one that the adapter puts in its place.
    const bool is_replaced = i + 1 < modules.size() && modules[i + 1].path == modules[i].path;
    if (!modules[i].has_magnitude || is_replaced) continue;
    ASSIGN_OR_RETURN(extras.dora, ReadDora(i, *base.model, binding, pool, cancellation));
  }
  return base.model->CheckUnchanged();
}

std::shared_ptr<const LoadedAdapter> AdapterBuilder::Build(std::string revision) {
  adapter_->revision_ = std::move(revision);
  adapter_->derived_digest_ = DerivedDigest(adapter_->manifest(), adapter_->extras_);
  return std::move(adapter_);
}

}  // namespace adapterd
