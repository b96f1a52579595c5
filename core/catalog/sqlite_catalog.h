// The catalogue of one server: what it acknowledged, in SQLite.
#ifndef ADAPTERD_CORE_CATALOG_SQLITE_CATALOG_H_
#define ADAPTERD_CORE_CATALOG_SQLITE_CATALOG_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/catalog/data_dir.h"
#include "core/catalog/record_rows.h"
#include "core/catalog/sqlite_database.h"
#include "core/registry/journal.h"

namespace adapterd {

// Name of the file in the data directory. Beside it lie SQLite's "-wal" and "-shm", which belong to
// it: a backup is made with "sqlite3 catalogue.sqlite '.backup FILE'", also while we run.
inline constexpr char kCatalogueFile[] = "catalogue.sqlite";

// Any thread. Each change waits for the disk once; changes that arrive while another one is being
// written are written together after it, so that many threads share the wait. The thread that
// calls does the work: there is none of its own. The destructor needs that no call is running.
class SqliteCatalog : public Journal {
 public:
  // Makes the data directory and the catalogue when they are missing, and holds the directory until
  // it is destroyed. The whole file is read and checked once. SOURCE_NOT_FOUND: the directory's
  // parent does not exist. SOURCE_UNAVAILABLE: another process holds it, or it cannot be read and
  // written. STORE_CORRUPT: the file is damaged, empty or not ours. NOT_IMPLEMENTED: a newer
  // version wrote it. STORAGE_FULL.
  static absl::StatusOr<std::unique_ptr<SqliteCatalog>> Open(const std::string& data_dir);

  // All records, by name. STORE_CORRUPT names the adapter whose rows are damaged; then there is no
  // result: what is left would pass for all there is. SOURCE_UNAVAILABLE.
  absl::StatusOr<std::vector<AdapterRecord>> ReadAll() ABSL_LOCKS_EXCLUDED(database_mutex_);

  // Both are on disk, whole, on return; after an error the former record stands
  // (a power cut just after a failing disk may leave either). A record that
  // would not be read back equal is refused (INVALID_FIELD): text of a description, warning, label
  // or alias that is not UTF-8, a row of more than kMaxRowBytes, a time beyond 64 bits of
  // nanoseconds; fractions of a nanosecond are dropped. Also STORE_CORRUPT.
  absl::Status Put(const AdapterRecord& record) override ABSL_LOCKS_EXCLUDED(database_mutex_);
  absl::Status Erase(const std::string& name) override ABSL_LOCKS_EXCLUDED(database_mutex_);

 private:
  // One call that waits to be written; lives on its caller's stack.
  struct Change {
    const std::string& name;
    const AdapterRecord* record = nullptr;  // null: erase
    EncodedRecord encoded = {};
    absl::Status status = {};  // set by whoever writes it, before done
    bool done = false;         // under the queue's mutex
  };

  SqliteCatalog(DataDir data_dir, std::unique_ptr<SqliteDatabase> database, RecordWriter writer)
      : data_dir_(std::move(data_dir)),
        database_(std::move(database)),
        writer_(std::move(writer)) {}

  // Returns when `change` was written, by this thread or another one.
  absl::Status Write(Change& change) ABSL_LOCKS_EXCLUDED(queue_mutex_, database_mutex_);
  // Sets the status of each.
  void WriteAll(const std::vector<Change*>& changes) ABSL_LOCKS_EXCLUDED(database_mutex_);
  // What the caller is told.
  static absl::Status Result(const Change& change);
  // In one transaction, all or none.
  absl::Status Commit(const std::vector<Change*>& changes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(database_mutex_);
  absl::Status Apply(const std::vector<Change*>& changes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(database_mutex_);

  const DataDir data_dir_;

  absl::Mutex database_mutex_;
  std::unique_ptr<SqliteDatabase> database_ ABSL_PT_GUARDED_BY(database_mutex_);
  RecordWriter writer_ ABSL_GUARDED_BY(database_mutex_);

  absl::Mutex queue_mutex_;                             // never held together with the other one
  bool writing_ ABSL_GUARDED_BY(queue_mutex_) = false;  // one thread, all that waited before it
  std::vector<Change*> waiting_ ABSL_GUARDED_BY(queue_mutex_);  // in the order of their calls
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_SQLITE_CATALOG_H_
