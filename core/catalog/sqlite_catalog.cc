#include "core/catalog/sqlite_catalog.h"

#include <fmt/format.h>

#include <string_view>

#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/catalog/schema.h"

namespace adapterd {
namespace {

// A catalogue under construction. It gets its name when it is whole, so that an empty file of that
// name is never a new catalogue but one that lost its content.
constexpr char kNewFile[] = "catalogue.sqlite.new";
constexpr char kNewJournal[] = "catalogue.sqlite.new-journal";
constexpr int64_t kSmallestBytes = 512;  // SQLite's smallest page; it takes a few bytes for none
constexpr char kLogFile[] = "catalogue.sqlite-wal";

std::string Title(const DataDir& data_dir) {
  return fmt::format("catalogue of data directory {}", Quoted(data_dir.path()));
}

// SQLite would replay a log whose file is gone into the new one.
absl::Status CheckNoLog(const DataDir& data_dir) {
  ASSIGN_OR_RETURN(const int64_t log_bytes, data_dir.SizeOf(kLogFile));
  if (log_bytes < 0) return absl::OkStatus();
  return Error(Reason::kStoreCorrupt,
               fmt::format("{}: {} is missing, but its log {} is there; restore both, or move the "
                           "log away and load the adapters again",
                           Title(data_dir), kCatalogueFile, kLogFile));
}

absl::Status CreateCatalogue(const DataDir& data_dir) {
  RETURN_IF_ERROR(CheckNoLog(data_dir));
  RETURN_IF_ERROR(data_dir.Remove(kNewJournal));
  RETURN_IF_ERROR(data_dir.Remove(kNewFile));
  RETURN_IF_ERROR(data_dir.Create(kNewFile));
  ASSIGN_OR_RETURN(auto database, SqliteDatabase::Open(data_dir.PathOf(kNewFile), Title(data_dir)));
  RETURN_IF_ERROR(database->Execute("PRAGMA synchronous = FULL"));
  RETURN_IF_ERROR(CheckAndMigrate(*database, CatalogueMigrations()));
  database.reset();
  return data_dir.Publish(kNewFile, kCatalogueFile);
}

absl::Status RequireCatalogue(const DataDir& data_dir) {
  ASSIGN_OR_RETURN(const int64_t bytes, data_dir.SizeOf(kCatalogueFile));
  if (bytes < 0) return CreateCatalogue(data_dir);
  if (bytes >= kSmallestBytes) return absl::OkStatus();
  return Error(Reason::kStoreCorrupt,
               fmt::format("{}: {} has lost its content (expected {} bytes or more, found {}); "
                           "restore a backup, or remove it and load the adapters again",
                           Title(data_dir), kCatalogueFile, kSmallestBytes, bytes));
}

// Every commit waits for the disk; readers and the writer do not wait for each other.
absl::Status SetDurability(SqliteDatabase& database) {
  ASSIGN_OR_RETURN(const std::string mode, database.QueryText("PRAGMA journal_mode = WAL"));
  if (mode != "wal") {
    return Error(Reason::kSourceUnavailable,
                 fmt::format("{}: its file system cannot hold a write-ahead log (expected journal "
                             "mode wal, found {}); use a local one",
                             database.title(), mode));
  }
  return database.Execute("PRAGMA synchronous = FULL");
}

}  // namespace

absl::StatusOr<std::unique_ptr<SqliteCatalog>> SqliteCatalog::Open(const std::string& path) {
  ASSIGN_OR_RETURN(DataDir data_dir, DataDir::Open(path));
  RETURN_IF_ERROR(RequireCatalogue(data_dir));
  ASSIGN_OR_RETURN(auto database,
                   SqliteDatabase::Open(data_dir.PathOf(kCatalogueFile), Title(data_dir)));
  RETURN_IF_ERROR(CheckAndMigrate(*database, CatalogueMigrations()));
  RETURN_IF_ERROR(SetDurability(*database));
  ASSIGN_OR_RETURN(RecordWriter writer, RecordWriter::Prepare(*database));
  return std::unique_ptr<SqliteCatalog>(
      new SqliteCatalog(std::move(data_dir), std::move(database), std::move(writer)));
}

absl::StatusOr<std::vector<AdapterRecord>> SqliteCatalog::ReadAll() {
  const absl::MutexLock lock(&database_mutex_);
  return ReadRecords(*database_);
}

absl::Status SqliteCatalog::Put(const AdapterRecord& record) {
  ASSIGN_OR_RETURN(EncodedRecord encoded, EncodeRecord(record));
  Change change{.name = record.name, .record = &record, .encoded = std::move(encoded)};
  return Write(change);
}

absl::Status SqliteCatalog::Erase(const std::string& name) {
  Change change{.name = name};
  return Write(change);
}

absl::Status SqliteCatalog::Write(Change& change) {
  std::vector<Change*> changes;
  {
    const absl::MutexLock lock(&queue_mutex_);
    waiting_.push_back(&change);
    const auto decided = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return change.done || !writing_; };
    queue_mutex_.Await(absl::Condition(&decided));
    if (change.done) return Result(change);
    writing_ = true;
    changes.swap(waiting_);
  }
  WriteAll(changes);
  const absl::MutexLock lock(&queue_mutex_);
  for (Change* written : changes) written->done = true;
  writing_ = false;
  return Result(change);
}

void SqliteCatalog::WriteAll(const std::vector<Change*>& changes) {
  const absl::MutexLock lock(&database_mutex_);
  const absl::Status together = Commit(changes);
  // What is too large for the disk must not fail what is not, an Erase above all.
  const bool alone = changes.size() > 1 && !together.ok() &&
                     GetErrorDetails(together).reason == Reason::kStorageFull;
  for (Change* change : changes) change->status = alone ? Commit({change}) : together;
}

absl::Status SqliteCatalog::Result(const Change& change) {
  if (change.status.ok()) return change.status;
  return Error(GetErrorDetails(change.status).reason,
               fmt::format("cannot {} adapter {}: {}", change.record == nullptr ? "erase" : "write",
                           Quoted(change.name), static_cast<std::string>(change.status.message())))
      .With("adapter", change.name);
}

absl::Status SqliteCatalog::Commit(const std::vector<Change*>& changes) {
  absl::Status status = Apply(changes);
  if (!status.ok()) database_->RollBack();
  return status;
}

absl::Status SqliteCatalog::Apply(const std::vector<Change*>& changes) {
  RETURN_IF_ERROR(database_->Execute("BEGIN IMMEDIATE"));
  for (const Change* change : changes) {
    RETURN_IF_ERROR(change->record == nullptr ? writer_.Erase(change->name)
                                              : writer_.Put(*change->record, change->encoded));
  }
  return database_->Execute("COMMIT");
}

}  // namespace adapterd
