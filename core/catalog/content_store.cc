#include "core/catalog/content_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "core/base/status_macros.h"
#include "core/catalog/content_key.h"
#include "core/catalog/incoming_content.h"

namespace adapterd {
namespace {

namespace fs = std::filesystem;

constexpr char kIncoming[] = "incoming";
constexpr char kContent[] = "content";

// Whatever else an operator put there is not ours to remove.
bool IsKey(std::string_view name) {
  return name.size() == 64 && std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

int64_t BytesBelow(const fs::path& folder) {
  int64_t bytes = 0;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code unknown;
    const uintmax_t size = it->file_size(unknown);
    if (!unknown) bytes += static_cast<int64_t>(size);
  }
  return bytes;
}

}  // namespace

StoredContent::StoredContent(StoredContent&& other) noexcept
    : store_(std::exchange(other.store_, nullptr)), key_(std::exchange(other.key_, "")) {}

StoredContent& StoredContent::operator=(StoredContent&& other) noexcept {
  std::swap(store_, other.store_);
  std::swap(key_, other.key_);
  return *this;
}

void StoredContent::Release() {
  if (store_ != nullptr) store_->Release(key_);
}

ContentStore::ContentStore(std::string folder, bool temporary, std::shared_ptr<Disk> disk)
    : folder_(std::move(folder)), temporary_(temporary), disk_(std::move(disk)) {}

ContentStore::~ContentStore() {
  std::error_code ignored;
  if (temporary_) fs::remove_all(folder_, ignored);
}

absl::StatusOr<std::unique_ptr<ContentStore>> ContentStore::Open(const std::string& folder,
                                                                 std::shared_ptr<Disk> disk) {
  std::unique_ptr<ContentStore> store(new ContentStore(folder, false, std::move(disk)));
  RETURN_IF_ERROR(store->OpenFolders());
  return store;
}

absl::StatusOr<std::unique_ptr<ContentStore>> ContentStore::OpenTemporary() {
  std::error_code error;
  const fs::path parent = fs::temp_directory_path(error);
  if (error) return DiskError(error.value(), "there is no folder for temporary files");
  std::string folder = parent / "adapterd-XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) return DiskError(errno, "cannot make " + folder);
  std::unique_ptr<ContentStore> store(new ContentStore(folder, true, std::make_shared<Disk>()));
  RETURN_IF_ERROR(store->OpenFolders());
  return store;
}

absl::Status ContentStore::OpenFolders() {
  std::error_code error;
  fs::create_directories(fs::path(folder_).parent_path(), error);
  if (error) return DiskError(error.value(), "cannot make the folder above " + folder_);
  ASSIGN_OR_RETURN(lock_, OpenPart(""));
  if (flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) {
    return DiskError(errno, folder_ + " is in use by another process");
  }
  ASSIGN_OR_RETURN(incoming_, OpenPart(kIncoming));
  ASSIGN_OR_RETURN(content_, OpenPart(kContent));
  RETURN_IF_ERROR(Sync(lock_.get(), folder_));
  std::vector<fs::path> left;
  const fs::path incoming = fs::path(folder_) / kIncoming;
  for (fs::directory_iterator it(incoming, error), end; !error && it != end; it.increment(error)) {
    left.push_back(it->path());
  }
  for (const fs::path& path : left) {
    if (!error) fs::remove_all(path, error);
  }
  if (error) return DiskError(error.value(), "cannot empty " + incoming.string());
  auto roots = SourceRoots::Open({{"", (fs::path(folder_) / kContent).string()}});
  RETURN_IF_ERROR(roots.status());
  roots_ = std::make_shared<const SourceRoots>(*std::move(roots));
  return absl::OkStatus();
}

absl::StatusOr<ScopedFd> ContentStore::OpenPart(const std::string& name) {
  const std::string path = name.empty() ? folder_ : folder_ + "/" + name;
  const int made = disk_->MakeFolder(AT_FDCWD, path);
  if (made < 0 && made != -EEXIST) return DiskError(-made, "cannot make " + path);
  const int folder = disk_->OpenFolder(AT_FDCWD, path);
  if (folder < 0) return DiskError(-folder, "cannot open " + path);
  return ScopedFd(folder);
}

absl::Status ContentStore::Sync(int file_or_folder, std::string_view what) {
  if (temporary_) return absl::OkStatus();
  const int error = disk_->Sync(file_or_folder);
  return error == 0 ? absl::OkStatus() : DiskError(-error, fmt::format("cannot store {}", what));
}

absl::StatusOr<std::unique_ptr<IncomingContent>> ContentStore::Begin(int64_t max_bytes) {
  const std::string name = NextName();
  const int made = disk_->MakeFolder(incoming_.get(), name);
  if (made < 0) return DiskError(-made, "cannot make a folder for the upload");
  std::unique_ptr<IncomingContent> incoming(new IncomingContent(*this, name, max_bytes));
  const int folder = disk_->OpenFolder(incoming_.get(), name);
  if (folder < 0) return DiskError(-folder, "cannot open the folder of the upload");
  incoming->folder_ = ScopedFd(folder);
  return incoming;
}

absl::StatusOr<StoredContent> ContentStore::Adopt(const std::string& name, const std::string& key) {
  bool was_there = false;
  ASSIGN_OR_RETURN(StoredContent stored, MoveIn(name, key, was_there));
  // Damaged bytes would be loaded as if the client had sent them.
  if (was_there && !IsIntact(key)) RETURN_IF_ERROR(Replace(name, key));
  return stored;
}

absl::StatusOr<StoredContent> ContentStore::MoveIn(const std::string& name, const std::string& key,
                                                   bool& was_there) {
  absl::MutexLock moves(&moves_);
  struct stat state;
  was_there = fstatat(content_.get(), key.c_str(), &state, AT_SYMLINK_NOFOLLOW) == 0;
  if (!was_there) {
    const int error = disk_->Rename(incoming_.get(), name, content_.get(), key);
    if (error < 0) return DiskError(-error, "cannot store the upload under its key");
  }
  // One that was there may be left from a time when this failed.
  const absl::Status synced = Sync(content_.get(), "the upload under its key");
  if (!synced.ok()) {
    if (!was_there) disk_->Rename(content_.get(), key, incoming_.get(), name);
    return synced;
  }
  absl::MutexLock lock(&mutex_);
  ++references_[key];
  return StoredContent(this, key);
}

bool ContentStore::IsIntact(const std::string& key) const {
  const auto folder = roots_->OpenFolder(key);
  if (!folder.ok()) return false;
  const auto found = ReadContentKey(*folder);
  return found.ok() && *found == key;
}

absl::Status ContentStore::Replace(const std::string& name, const std::string& key) {
  const std::string damaged = NextName();
  absl::Status status;
  {
    absl::MutexLock moves(&moves_);
    int error = disk_->Rename(content_.get(), key, incoming_.get(), damaged);
    if (error == 0) {
      error = disk_->Rename(incoming_.get(), name, content_.get(), key);
      if (error < 0) disk_->Rename(incoming_.get(), damaged, content_.get(), key);
    }
    if (error < 0) return DiskError(-error, "cannot replace what the store holds of the upload");
    status = Sync(content_.get(), "the upload under its key");
  }
  RemoveIncoming(damaged);
  return status;
}

void ContentStore::RemoveIncoming(const std::string& name) {
  std::error_code ignored;  // the next start tries again
  fs::remove_all(fs::path(folder_) / kIncoming / name, ignored);
}

void ContentStore::Release(const std::string& key) {
  absl::MutexLock lock(&mutex_);
  const auto found = references_.find(key);
  if (--found->second == 0) references_.erase(found);
}

std::set<std::string> ContentStore::References() const {
  absl::MutexLock lock(&mutex_);
  std::set<std::string> keys;
  for (const auto& [key, unused] : references_) keys.insert(key);
  return keys;
}

absl::StatusOr<std::set<std::string>> ContentStore::Keys() const {
  std::set<std::string> keys;
  std::error_code error;
  const fs::path content = fs::path(folder_) / kContent;
  for (fs::directory_iterator it(content, error), end; !error && it != end; it.increment(error)) {
    std::string name = it->path().filename();
    if (IsKey(name)) keys.insert(std::move(name));
  }
  if (error) return DiskError(error.value(), "cannot list the store");
  return keys;
}

absl::StatusOr<ContentStore::Collected> ContentStore::Collect(
    absl::FunctionRef<std::set<std::string>()> wanted) {
  std::vector<std::string> moved;
  absl::Status status;
  {
    absl::MutexLock moves(&moves_);
    ASSIGN_OR_RETURN(std::set<std::string> keys, Keys());
    // In this order: what loses its last reference after this is in `wanted` when it has to be.
    for (const std::string& key : References()) keys.erase(key);
    if (keys.empty()) return Collected();  // to know what is wanted takes a look at every adapter
    const std::set<std::string> in_use = wanted();
    for (const std::string& key : keys) {
      if (in_use.count(key) > 0) continue;
      const std::string name = NextName();
      const int error = disk_->Rename(content_.get(), key, incoming_.get(), name);
      if (error == 0) moved.push_back(name);
      if (error < 0) status.Update(DiskError(-error, "cannot remove " + key));
    }
    // A half-removed content must not be back under its key after a loss of power.
    if (!moved.empty()) RETURN_IF_ERROR(Sync(content_.get(), "that contents are gone"));
  }
  Collected collected;
  for (const std::string& name : moved) {
    ++collected.contents;
    collected.bytes += BytesBelow(fs::path(folder_) / kIncoming / name);
    RemoveIncoming(name);
  }
  if (!status.ok()) return status;
  return collected;
}

}  // namespace adapterd
