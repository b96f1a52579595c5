#include "core/registry/loaded_adapter.h"

#include <utility>

#include "core/base/status_macros.h"

namespace adapterd {
namespace {

PairShape ShapeOf(const ModuleInfo& module) {
  return {module.in_features, module.rank, module.out_features};
}

// Inputs most often come in the dtype that the adapter was trained in, which is A's.
ComputeType FirstForm(const Kernels& kernels, const ModuleInfo& module) {
  return kernels.ComputeTypeFor(module.lora_a_dtype, module.lora_a_dtype, module.lora_b_dtype);
}

}  // namespace

absl::StatusOr<int64_t> LoadedAdapter::BytesFor(const Kernels& kernels,
                                                const AdapterManifest& manifest) {
  int64_t bytes = manifest.factor_bytes();
  for (const ModuleInfo& module : manifest.modules) {
    ASSIGN_OR_RETURN(int64_t packed,
                     PackedPair::BytesFor(kernels, ShapeOf(module), FirstForm(kernels, module)));
    bytes += packed;
  }
  return bytes;
}

absl::StatusOr<std::shared_ptr<const LoadedAdapter>> LoadedAdapter::Create(
    const Kernels& kernels, std::shared_ptr<MemoryBudget> budget,
    std::shared_ptr<const Adapter> adapter, Reservation reservation) {
  std::shared_ptr<LoadedAdapter> loaded(
      new LoadedAdapter(kernels, std::move(budget), std::move(adapter), std::move(reservation)));
  absl::MutexLock lock(&loaded->mutex_);
  const std::vector<ModuleInfo>& modules = loaded->manifest().modules;
  for (size_t i = 0; i < modules.size(); ++i) {
    RETURN_IF_ERROR(loaded->Pack(i, FirstForm(kernels, modules[i])));
  }
  return loaded;
}

LoadedAdapter::LoadedAdapter(const Kernels& kernels, std::shared_ptr<MemoryBudget> budget,
                             std::shared_ptr<const Adapter> adapter, Reservation reservation)
    : kernels_(kernels),
      budget_(std::move(budget)),
      adapter_(std::move(adapter)),
      memory_bytes_(reservation.bytes()),
      slots_(adapter_->manifest().modules.size()) {
  absl::MutexLock lock(&mutex_);
  reservations_.push_back(std::move(reservation));
}

LoadedAdapter::~LoadedAdapter() {
  std::vector<FreedCallback> callbacks;
  {
    absl::MutexLock lock(&mutex_);
    callbacks.swap(on_freed_);
    slots_.clear();
    adapter_.reset();
    reservations_.clear();  // only now: the budget must never promise bytes that are still held
  }
  const int64_t freed = memory_bytes_.load(std::memory_order_relaxed);
  for (FreedCallback& callback : callbacks) callback(freed);
}

absl::Status LoadedAdapter::Pack(size_t module, ComputeType type) const {
  const ModuleFactors& factors = adapter_->factors(module);
  ASSIGN_OR_RETURN(auto pair, PackedPair::Pack(kernels_, AsMatrix(factors.lora_a),
                                               AsMatrix(factors.lora_b), type));
  Slot& slot = slots_[module];
  const auto form = static_cast<size_t>(type);
  slot.owned[form] = std::move(pair);
  slot.ready[form].store(slot.owned[form].get(), std::memory_order_release);
  return absl::OkStatus();
}

absl::StatusOr<const PackedPair*> LoadedAdapter::Pair(size_t module, DType input) const {
  const ModuleInfo& info = manifest().modules[module];
  const ComputeType type = kernels_.ComputeTypeFor(input, info.lora_a_dtype, info.lora_b_dtype);
  const auto form = static_cast<size_t>(type);
  if (const PackedPair* pair = slots_[module].ready[form].load(std::memory_order_acquire)) {
    return pair;
  }
  absl::MutexLock lock(&mutex_);
  if (const PackedPair* pair = slots_[module].ready[form].load(std::memory_order_acquire)) {
    return pair;  // another thread packed it meanwhile
  }
  ASSIGN_OR_RETURN(int64_t bytes, PackedPair::BytesFor(kernels_, ShapeOf(info), type));
  ASSIGN_OR_RETURN(Reservation reservation, budget_->Reserve(bytes));
  RETURN_IF_ERROR(Pack(module, type));
  reservations_.push_back(std::move(reservation));
  memory_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  return slots_[module].ready[form].load(std::memory_order_acquire);
}

void LoadedAdapter::OnFreed(FreedCallback callback) const {
  absl::MutexLock lock(&mutex_);
  on_freed_.push_back(std::move(callback));
}

}  // namespace adapterd
