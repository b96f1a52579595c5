#include "core/base_model/dora_gains.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

// Of a weight that is not taken as it lies in memory.
constexpr int64_t kBlockBytes = 4 << 20;

// Whether two pointers share their owner, which addresses cannot tell once one of them is gone.
template <typename T>
bool IsSame(const std::weak_ptr<T>& known, const std::shared_ptr<T>& asked) {
  return !known.owner_before(asked) && !asked.owner_before(known);
}

int64_t BytesOf(const Gains& gains) { return static_cast<int64_t>(gains->size() * sizeof(float)); }

absl::Status AddInBlocks(ThreadPool& pool, const StoredWeight& weight,
                         const Cancellation& cancellation, DoraNorms& norms) {
  const int64_t rows = weight.rows();
  const int64_t row_bytes = weight.cols() * static_cast<int64_t>(sizeof(float));
  const int64_t block = std::clamp<int64_t>(kBlockBytes / row_bytes, 1, rows);
  AlignedBuffer values(static_cast<size_t>(block * row_bytes));
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t count = std::min(block, rows - first);
    auto* to = reinterpret_cast<float*>(values.data());
    for (int64_t row = 0; row < count; ++row) {
      weight.ReadRow(first + row, 0, weight.cols(), to + row * weight.cols());
    }
    RETURN_IF_ERROR(
        norms.Add(pool, first, {DType::kF32, count, weight.cols(), values.data()}, cancellation));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Gains> ComputeDoraGains(const Kernels& kernels, ThreadPool& pool,
                                       const StoredWeight& weight, const MergeTerm& term,
                                       std::span<const float> magnitude,
                                       const Cancellation& cancellation) {
  ASSIGN_OR_RETURN(DoraNorms norms,
                   DoraNorms::Create(kernels, term, weight.layout, weight.rows(), weight.cols()));
  if (weight.dense() != nullptr && weight.replaced.empty()) {
    RETURN_IF_ERROR(norms.Add(pool, 0, *weight.dense(), cancellation));
  } else {
    RETURN_IF_ERROR(AddInBlocks(pool, weight, cancellation, norms));
  }
  auto gains = std::make_shared<const std::vector<float>>(DoraGains(magnitude, norms.Finish()));
  if (std::ranges::all_of(*gains, [](float gain) { return std::isfinite(gain); })) return gains;
  return Error(Reason::kNonFiniteWeights,
               "a row of the base model's weight, with its delta, has no usable norm for DoRA");
}

DoraGainCache::Key DoraGainCache::KeyOf(const DoraPlace& place) {
  return {place.revision, place.module, place.pair, place.snapshot.module,
          place.snapshot.merged.get()};
}

void DoraGainCache::Erase(Entries::iterator entry) {
  bytes_ -= BytesOf(entry->gains);
  index_.erase(entry->key);
  entries_.erase(entry);
}

Gains DoraGainCache::Find(const DoraPlace& place) {
  absl::MutexLock lock(&mutex_);
  const auto found = index_.find(KeyOf(place));
  if (found == index_.end()) return nullptr;
  const auto entry = found->second;
  if (!IsSame(entry->base, place.snapshot.base) || !IsSame(entry->merged, place.snapshot.merged)) {
    Erase(entry);  // of what lay at these addresses before
    return nullptr;
  }
  entries_.splice(entries_.begin(), entries_, entry);
  return entry->gains;
}

void DoraGainCache::Insert(const DoraPlace& place, Gains gains) {
  if (BytesOf(gains) > max_bytes_) return;
  absl::MutexLock lock(&mutex_);
  const Key key = KeyOf(place);
  if (const auto found = index_.find(key); found != index_.end()) Erase(found->second);
  bytes_ += BytesOf(gains);
  entries_.push_front({key, place.snapshot.base, place.snapshot.merged, std::move(gains)});
  index_.emplace(key, entries_.begin());
  while (bytes_ > max_bytes_) Erase(std::prev(entries_.end()));
}

}  // namespace adapterd
