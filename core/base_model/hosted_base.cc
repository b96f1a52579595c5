#include "core/base_model/hosted_base.h"

#include <fmt/format.h>

#include <atomic>
#include <utility>

#include "core/base/error.h"

namespace adapterd {
namespace {

ModuleIndex IndexOf(const std::vector<HostedModule>& modules) {
  std::vector<std::string> paths;
  paths.reserve(modules.size());
  for (const HostedModule& module : modules) paths.push_back(module.path);
  return ModuleIndex(paths);
}

uint64_t NextInstance() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

int64_t OverlayBytes(const Overlays& overlays) {
  int64_t bytes = 0;
  for (const auto& overlay : overlays) bytes += overlay == nullptr ? 0 : overlay->memory_bytes();
  return bytes;
}

std::optional<MatrixView> ModuleSnapshot::weight() const {
  if (merged != nullptr && !merged->weight().bytes().empty()) {
    return MatrixView{merged->weight().dtype(), module->rows, module->cols,
                      merged->weight().bytes().data()};
  }
  if (module->nf4 != nullptr) return std::nullopt;
  return module->stored();
}

const Tensor* ModuleSnapshot::bias() const {
  if (merged != nullptr && !merged->bias().bytes().empty()) return &merged->bias();
  return module->bias.bytes().empty() ? nullptr : &module->bias;
}

HostedBase::HostedBase(std::string source, std::string fingerprint, BaseGeometry geometry,
                       std::vector<HostedModule> modules, Reservation reservation)
    : source_(std::move(source)),
      fingerprint_(std::move(fingerprint)),
      geometry_(std::move(geometry)),
      instance_(NextInstance()),
      reservation_(std::move(reservation)),
      modules_(std::move(modules)),
      index_(IndexOf(modules_)),
      overlays_(modules_.size()) {}

HostedBase::~HostedBase() {
  Overlays overlays;
  std::vector<absl::AnyInvocable<void(int64_t)>> callbacks;
  {
    absl::MutexLock lock(&mutex_);
    overlays.swap(overlays_);
    callbacks.swap(on_freed_);
  }
  const int64_t freed = base_bytes() + OverlayBytes(overlays);
  overlays.clear();  // lets go of adapters, which is not for under a lock
  modules_.clear();
  reservation_.Release();  // only now: the budget must never promise bytes that are still held
  for (auto& callback : callbacks) callback(freed);
}

absl::StatusOr<size_t> HostedBase::Find(const ModuleSelector& selector) const {
  absl::StatusOr<size_t> found = index_.Find(selector);
  if (found.ok() || GetErrorDetails(found.status()).reason != Reason::kModuleNotTargeted) {
    return found;
  }
  const std::string module = SelectorString(selector);
  return Error(Reason::kModuleNotTargeted, fmt::format("the base model has no module {}", module))
      .With("module", module);
}

ModuleSnapshot HostedBase::Snapshot(size_t module) const {
  absl::MutexLock lock(&mutex_);
  return {shared_from_this(), &modules_[module], overlays_[module]};
}

Overlays HostedBase::overlays() const {
  absl::MutexLock lock(&mutex_);
  return overlays_;
}

void HostedBase::Replace(const std::vector<size_t>& modules, Overlays overlays) {
  absl::MutexLock lock(&mutex_);
  for (size_t i = 0; i < modules.size(); ++i) overlays_[modules[i]].swap(overlays[i]);
}  // what was replaced goes with the argument, when the lock is free again

void HostedBase::OnFreed(absl::AnyInvocable<void(int64_t)> callback) {
  absl::MutexLock lock(&mutex_);
  on_freed_.push_back(std::move(callback));
}

}  // namespace adapterd
