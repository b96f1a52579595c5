#include "core/base_model/hosted_bases.h"

#include <fmt/format.h>

#include <new>
#include <optional>
#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/base_model/hosted_tensors.h"

namespace adapterd {
namespace {

absl::Status NotFound(const std::string& name) {
  return Error(Reason::kBaseModelNotFound, fmt::format("base model \"{}\" is not loaded", name))
      .With("base_model", name);
}

absl::Status Exists(const std::string& name, std::string_view how) {
  return Error(Reason::kBaseModelExists, fmt::format("base model \"{}\" {}", name, how))
      .With("base_model", name);
}

}  // namespace

HostedBases::HostedBases(std::shared_ptr<const SourceRoots> models,
                         std::shared_ptr<MemoryBudget> budget, const Kernels& kernels,
                         ThreadPool& io_pool, ThreadPool& workers)
    : models_(std::move(models)),
      budget_(std::move(budget)),
      io_pool_(io_pool),
      workers_(workers),
      tools_{kernels, workers, *budget_} {}

absl::StatusOr<NamedBase> HostedBases::Load(const BaseLoadRequest& request,
                                            const Cancellation& cancellation) {
  std::optional<Entry> other;
  {
    absl::MutexLock lock(&mutex_);
    const auto [entry, is_new] =
        entries_.try_emplace(request.name, Entry{request, nullptr, nullptr});
    if (!is_new) other = entry->second;
  }
  if (other) return LoadAgain(request, *other);
  absl::StatusOr<std::shared_ptr<HostedBase>> base = absl::InternalError("not read");
  try {
    base = LoadHostedBase(request, *models_, *budget_, io_pool_, cancellation);
  } catch (const std::bad_alloc&) {
    base = Error(Reason::kMemoryBudgetExceeded, "the machine has no memory left for this model");
  }
  absl::MutexLock lock(&mutex_);
  if (!base.ok()) {
    entries_.erase(request.name);
    return base.status();
  }
  Entry& entry = entries_.at(request.name);
  entry.base = *base;
  entry.changes = std::make_shared<Strand>(workers_);
  return NamedBase{request.name, *std::move(base)};
}

absl::StatusOr<NamedBase> HostedBases::LoadAgain(const BaseLoadRequest& request,
                                                 const Entry& entry) const {
  if (entry.base == nullptr) return Exists(request.name, "is being loaded");
  if (request != entry.request)
    return Exists(request.name, "is loaded from elsewhere or otherwise");
  ProblemList problems;
  const auto source = BaseModel::Open(*models_, request.source, problems, "source");
  RETURN_IF_ERROR(problems.ToStatus());
  if (source->fingerprint() == entry.base->fingerprint())
    return NamedBase{request.name, entry.base};
  return Exists(request.name, "is loaded with what its source held before");
}

absl::StatusOr<HostedBases::Entry> HostedBases::FindEntry(const std::string& name) const {
  absl::MutexLock lock(&mutex_);
  const auto found = entries_.find(name);
  if (found == entries_.end() || found->second.base == nullptr) return NotFound(name);
  return found->second;
}

absl::Status HostedBases::Unload(const std::string& name, absl::AnyInvocable<void(int64_t)> freed) {
  Entry entry;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = entries_.find(name);
    if (found == entries_.end() || found->second.base == nullptr) return NotFound(name);
    entry = std::move(found->second);
    entries_.erase(found);
  }
  entry.base->OnFreed(std::move(freed));
  return absl::OkStatus();
}

absl::StatusOr<NamedBase> HostedBases::Find(const std::string& name) const {
  ASSIGN_OR_RETURN(Entry entry, FindEntry(name));
  return NamedBase{name, std::move(entry.base)};
}

std::vector<NamedBase> HostedBases::List() const {
  std::vector<NamedBase> bases;
  absl::MutexLock lock(&mutex_);
  for (const auto& [name, entry] : entries_) {
    if (entry.base != nullptr) bases.push_back({name, entry.base});
  }
  return bases;
}

HostedBaseFinder HostedBases::Finder() const {
  return [this](const std::string& name) -> absl::StatusOr<std::shared_ptr<const BaseTensors>> {
    ASSIGN_OR_RETURN(NamedBase found, Find(name));
    return std::make_shared<const HostedTensors>(name, std::move(found.base));
  };
}

absl::Status HostedBases::Change(const std::string& name, Job change) {
  ASSIGN_OR_RETURN(Entry entry, FindEntry(name));
  entry.changes->Submit([this, named = NamedBase{name, std::move(entry.base)},
                         change = std::move(change)]() mutable { change(named, tools_); });
  return absl::OkStatus();
}

}  // namespace adapterd
