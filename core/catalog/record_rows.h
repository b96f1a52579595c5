// Records as rows of the catalogue's tables, and back.
#ifndef ADAPTERD_CORE_CATALOG_RECORD_ROWS_H_
#define ADAPTERD_CORE_CATALOG_RECORD_ROWS_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/catalog/sqlite_database.h"
#include "core/registry/journal.h"

namespace adapterd {

// What of a revision is stored in another form than the record has it.
struct EncodedRevision {
  int64_t load_time_ns = 0;
  int64_t load_duration_ns = 0;
  std::string warnings;
  std::string description;
};

struct EncodedRecord {
  std::string labels;
  std::string aliases;
  std::vector<EncodedRevision> revisions;  // the current one, then the kept ones
};

// INVALID_FIELD, naming the adapter: text that is not UTF-8, a time that no 64-bit count of
// nanoseconds holds, or more than a row may have.
absl::StatusOr<EncodedRecord> EncodeRecord(const AdapterRecord& record);

// Writes records; the caller makes the transaction. Used by one thread at a time; the database
// outlives it. Errors of SqliteDatabase.
class RecordWriter {
 public:
  static absl::StatusOr<RecordWriter> Prepare(SqliteDatabase& database);

  // `encoded` is EncodeRecord(record).
  absl::Status Put(const AdapterRecord& record, const EncodedRecord& encoded);
  absl::Status Erase(const std::string& name);

 private:
  RecordWriter(SqliteStatement put_adapter, SqliteStatement put_revision,
               SqliteStatement erase_adapter, SqliteStatement erase_revisions)
      : put_adapter_(std::move(put_adapter)),
        put_revision_(std::move(put_revision)),
        erase_adapter_(std::move(erase_adapter)),
        erase_revisions_(std::move(erase_revisions)) {}

  absl::Status PutRevision(const std::string& name, int64_t position, const RevisionRecord& record,
                           const EncodedRevision& encoded);

  SqliteStatement put_adapter_;
  SqliteStatement put_revision_;
  SqliteStatement erase_adapter_;
  SqliteStatement erase_revisions_;
};

// All records, by name, as of one moment. STORE_CORRUPT names the adapter whose
// rows do not decode or do not fit; errors of SqliteDatabase.
absl::StatusOr<std::vector<AdapterRecord>> ReadRecords(SqliteDatabase& database);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_RECORD_ROWS_H_
