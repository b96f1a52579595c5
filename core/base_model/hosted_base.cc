#include "core/base_model/hosted_base.h"

#include <utility>

namespace adapterd {
namespace {

ModuleIndex IndexOf(const std::vector<HostedModule>& modules) {
  std::vector<std::string> paths;
  paths.reserve(modules.size());
  for (const HostedModule& module : modules) paths.push_back(module.path);
  return ModuleIndex(paths);
}

}  // namespace

std::optional<MatrixView> ModuleSnapshot::weight() const {
  if (merged != nullptr && !merged->weight.bytes().empty()) {
    return MatrixView{merged->weight.dtype(), module->rows, module->cols,
                      merged->weight.bytes().data()};
  }
  if (module->nf4 != nullptr) return std::nullopt;
  return module->stored();
}

const Tensor* ModuleSnapshot::bias() const {
  if (merged != nullptr && !merged->bias.bytes().empty()) return &merged->bias;
  return module->bias.bytes().empty() ? nullptr : &module->bias;
}

HostedBase::HostedBase(std::string source, std::string fingerprint, BaseGeometry geometry,
                       std::vector<HostedModule> modules, Reservation reservation)
    : source_(std::move(source)),
      fingerprint_(std::move(fingerprint)),
      geometry_(std::move(geometry)),
      reservation_(std::move(reservation)),
      modules_(std::move(modules)),
      index_(IndexOf(modules_)),
      overlays_(modules_.size()) {}

HostedBase::~HostedBase() {
  std::vector<absl::AnyInvocable<void()>> callbacks;
  {
    absl::MutexLock lock(&mutex_);
    overlays_.clear();
    callbacks = std::move(on_freed_);
  }
  modules_.clear();
  reservation_.Release();  // only now: the budget must never promise bytes that are still held
  for (auto& callback : callbacks) callback();
}

ModuleSnapshot HostedBase::Snapshot(size_t module) const {
  absl::MutexLock lock(&mutex_);
  return {shared_from_this(), &modules_[module], overlays_[module]};
}

std::vector<std::shared_ptr<const MergedOverlay>> HostedBase::Overlays() const {
  absl::MutexLock lock(&mutex_);
  return overlays_;
}

void HostedBase::Replace(const std::vector<size_t>& modules,
                         std::vector<std::shared_ptr<const MergedOverlay>> overlays) {
  absl::MutexLock lock(&mutex_);
  for (size_t i = 0; i < modules.size(); ++i) overlays_[modules[i]].swap(overlays[i]);
}  // what was replaced goes with the argument, when the lock is free again

void HostedBase::OnFreed(absl::AnyInvocable<void()> callback) {
  absl::MutexLock lock(&mutex_);
  on_freed_.push_back(std::move(callback));
}

}  // namespace adapterd
