#include "core/registry/loaded_adapter.h"

#include <utility>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

absl::StatusOr<int64_t> PairBytes(const Kernels& kernels, const ModuleInfo& module,
                                  ComputeType form) {
  if (module.kind == ModuleKind::kEmbedding) {
    return PackedPair::EmbeddingBytesFor(
        kernels, PairShapeOf(module),
        {ComputeType::kF32, module.lora_a_dtype, module.lora_b_dtype});
  }
  return PackedPair::BytesFor(kernels, PairShapeOf(module),
                              {form, module.lora_a_dtype, module.lora_b_dtype});
}

// Of the tensors as stored, and their F32 copies.
int64_t ExtrasBytes(const ModuleInfo& module) {
  int64_t elements = 1;
  for (const int64_t dim : module.weight_shape) elements *= dim;  // lies in a file: no overflow
  int64_t bytes = module.weight_shape.empty() ? 0 : elements * FloatBytes(module.weight_dtype);
  // Widest for all: what the vectors were stored as makes no difference worth a field.
  constexpr int64_t kFloat = sizeof(float);
  if (module.has_lora_bias) bytes += 2 * module.out_features * kFloat;
  if (module.has_magnitude) bytes += 4 * module.out_features * kFloat;  // with gain and base bias
  if (module.replaces_bias) bytes += module.out_features * kFloat;
  return bytes;
}

// What the last destructor on this thread gave back. Whoever lets go of a share cannot ask the
// object whether it was the last, nor its count: others let go at the same moment.
thread_local int64_t freed_here = 0;

}  // namespace

ComputeType FirstForm(const Kernels& kernels, const ModuleInfo& module) {
  return kernels.ComputeTypeFor(module.lora_a_dtype, module.lora_a_dtype, module.lora_b_dtype);
}

PairShape PairShapeOf(const ModuleInfo& module) {
  return {module.columns(), module.rank, module.out_features};
}

absl::StatusOr<int64_t> LoadedAdapter::BytesFor(const Kernels& kernels,
                                                const AdapterManifest& manifest) {
  std::optional<int64_t> bytes = 0;
  for (const ModuleInfo& module : manifest.modules) {
    if (module.pairs() > 0) {
      ASSIGN_OR_RETURN(const int64_t pair, PairBytes(kernels, module, FirstForm(kernels, module)));
      const auto pairs = CheckedMul(pair, module.pairs());
      bytes = bytes && pairs ? CheckedAdd(*bytes, *pairs) : std::nullopt;
    }
    if (bytes) bytes = CheckedAdd(*bytes, ExtrasBytes(module));
    if (!bytes) return Error(Reason::kShapeMismatch, "the size of the adapter overflows");
  }
  return *bytes;
}

LoadedAdapter::LoadedAdapter(const Kernels& kernels, std::shared_ptr<MemoryBudget> budget,
                             std::shared_ptr<const AdapterManifest> manifest,
                             Reservation reservation)
    : kernels_(kernels),
      budget_(std::move(budget)),
      manifest_(std::move(manifest)),
      extras_(manifest_->modules.size()),
      memory_bytes_(reservation.bytes()) {
  size_t slots = 0;
  for (const ModuleInfo& module : manifest_->modules) {
    first_slot_.push_back(slots);
    slots += static_cast<size_t>(module.pairs());
  }
  slots_ = std::vector<Slot>(slots);
  absl::MutexLock lock(&mutex_);
  reservations_.push_back(std::move(reservation));
}

LoadedAdapter::~LoadedAdapter() {
  absl::MutexLock lock(&mutex_);
  slots_.clear();
  extras_.clear();
  reservations_.clear();  // only now: the budget must never promise bytes that are still held
  freed_here = memory_bytes_.load(std::memory_order_relaxed);
}

int64_t LoadedAdapter::LetGo(std::shared_ptr<const LoadedAdapter> share) {
  freed_here = 0;
  share.reset();
  return freed_here;
}

void LoadedAdapter::Publish(Slot& slot, std::unique_ptr<const PackedPair> packed) {
  const auto form = static_cast<size_t>(packed->type());
  slot.owned[form] = std::move(packed);
  slot.ready[form].store(slot.owned[form].get(), std::memory_order_release);
}

PairFactors LoadedAdapter::Factors(size_t module, int64_t pair) const {
  const ModuleInfo& info = manifest_->modules[module];
  const auto form = static_cast<size_t>(
      info.kind == ModuleKind::kEmbedding ? ComputeType::kF32 : FirstForm(kernels_, info));
  const PackedPair& packed = *SlotOf(module, pair).ready[form].load(std::memory_order_acquire);
  return {packed.UnpackA(info.lora_a_dtype), packed.UnpackB(info.lora_b_dtype)};
}

absl::StatusOr<const PackedPair*> LoadedAdapter::Pair(size_t module, int64_t pair,
                                                      DType input) const {
  const ModuleInfo& info = manifest_->modules[module];
  const ComputeType type =
      info.kind == ModuleKind::kEmbedding
          ? ComputeType::kF32
          : kernels_.ComputeTypeFor(input, info.lora_a_dtype, info.lora_b_dtype);
  const auto form = static_cast<size_t>(type);
  Slot& slot = SlotOf(module, pair);
  if (const PackedPair* ready = slot.ready[form].load(std::memory_order_acquire)) return ready;
  absl::MutexLock lock(&mutex_);
  if (const PackedPair* ready = slot.ready[form].load(std::memory_order_acquire)) {
    return ready;  // another thread packed it meanwhile
  }
  ASSIGN_OR_RETURN(int64_t bytes, PairBytes(kernels_, info, type));
  ASSIGN_OR_RETURN(Reservation reservation, budget_->Reserve(bytes));
  const PairFactors factors = Factors(module, pair);
  ASSIGN_OR_RETURN(auto packed, PackedPair::Pack(kernels_, AsMatrix(factors.lora_a),
                                                 AsMatrix(factors.lora_b), type));
  Publish(slot, std::move(packed));
  reservations_.push_back(std::move(reservation));
  memory_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  return slot.ready[form].load(std::memory_order_acquire);
}

}  // namespace adapterd
