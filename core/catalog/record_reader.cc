#include <fmt/format.h>

#include <string_view>

#include "absl/time/time.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/catalog/record_codec.h"
#include "core/catalog/record_rows.h"

namespace adapterd {
namespace {

constexpr char kReadAdapters[] =
    "SELECT name, public_id, etag, pinned, enabled, labels, aliases FROM adapters ORDER BY name";

constexpr char kReadRevisions[] = R"(
  SELECT adapter, position, revision, derived_digest, weights_sha256, source, base_model,
         base_checkpoint, stored, memory_bytes, load_time_ns, load_duration_ns, warnings, description,
         hosted_base, num_attention_heads, num_key_value_heads
  FROM revisions ORDER BY adapter, position)";

Error Corrupt(const SqliteDatabase& database, std::string_view adapter, std::string_view problem) {
  return Error(Reason::kStoreCorrupt,
               fmt::format("{}: adapter {}: {}; restore a backup, or delete its rows and load it "
                           "again",
                           database.title(), Quoted(adapter), problem))
      .With("adapter", std::string(adapter));
}

// Reads the columns of a row in turn.
class RowReader {
 public:
  explicit RowReader(const SqliteStatement& row) : row_(row) {}

  absl::Status Read(std::string& value) {
    ASSIGN_OR_RETURN(const std::string_view text, row_.Text(next_++));
    value = text;
    return absl::OkStatus();
  }

  absl::Status Read(int64_t& value) {
    ASSIGN_OR_RETURN(value, row_.Integer(next_++));
    return absl::OkStatus();
  }

  absl::Status Read(bool& value) {
    ASSIGN_OR_RETURN(const int64_t number, row_.Integer(next_++));
    value = number == 1;
    if (number == 0 || number == 1) return absl::OkStatus();
    return Error(Reason::kStoreCorrupt,
                 fmt::format("pinned or enabled: expected 0 or 1, found {}", number));
  }

 private:
  const SqliteStatement& row_;
  int next_ = 0;
};

// Reads columns into several values, in the order of the columns.
template <typename... Values>
absl::Status ReadColumns(RowReader& row, Values&... values) {
  absl::Status status;
  (void)((status = row.Read(values), status.ok()) && ...);
  return status;
}

absl::Status DecodeAdapter(const SqliteStatement& statement, AdapterRecord& record) {
  RowReader row(statement);
  std::string labels;
  std::string aliases;
  RETURN_IF_ERROR(ReadColumns(row, record.name, record.public_id, record.etag, record.pinned,
                              record.enabled, labels, aliases));
  ASSIGN_OR_RETURN(record.labels, DecodeMap("labels", labels));
  ASSIGN_OR_RETURN(record.aliases, DecodeMap("aliases", aliases));
  return absl::OkStatus();
}

absl::Status DecodeRevision(const SqliteStatement& statement, std::string& adapter,
                            int64_t& position, RevisionRecord& record) {
  RowReader row(statement);
  int64_t load_time_ns = 0;
  int64_t load_duration_ns = 0;
  std::string warnings;
  std::string description;
  SourceSpec& source = record.source;
  HeadCounts heads;
  RETURN_IF_ERROR(ReadColumns(
      row, adapter, position, record.revision, record.derived_digest, record.weights_sha256,
      source.source, source.base_model, source.base_checkpoint, source.stored, record.memory_bytes,
      load_time_ns, load_duration_ns, warnings, description, source.hosted_base,
      heads.num_attention_heads, heads.num_key_value_heads));
  if (heads != HeadCounts()) source.head_counts = heads;
  if (record.memory_bytes < 0) {
    return Error(Reason::kStoreCorrupt,
                 fmt::format("memory_bytes: expected 0 or more, found {}", record.memory_bytes));
  }
  record.load_time = absl::FromUnixNanos(load_time_ns);
  record.load_duration = absl::Nanoseconds(load_duration_ns);
  ASSIGN_OR_RETURN(record.warnings, DecodeList("warnings", warnings));
  ASSIGN_OR_RETURN(record.description, DecodeDescription("description", description));
  return absl::OkStatus();
}

// The rows of revisions, one ahead of what was taken.
class RevisionRows {
 public:
  static absl::StatusOr<RevisionRows> Open(SqliteDatabase& database) {
    ASSIGN_OR_RETURN(SqliteStatement statement, database.Prepare(kReadRevisions));
    RevisionRows rows(database, std::move(statement));
    RETURN_IF_ERROR(rows.Advance());
    return rows;
  }

  // Moves the revisions of `record` into it. Every row has to belong to an adapter, so none may be
  // left that comes before it.
  absl::Status Take(AdapterRecord& record) {
    if (present_ && adapter_ < record.name) return Orphan();
    int64_t taken = 0;
    for (; present_ && adapter_ == record.name; ++taken) {
      if (position_ != taken) {
        return Corrupt(
            database_, adapter_,
            fmt::format("expected a revision at position {}, found {}", taken, position_));
      }
      (taken == 0 ? record.current : record.kept.emplace_back()) = std::move(revision_);
      RETURN_IF_ERROR(Advance());
    }
    if (taken > 0) return absl::OkStatus();
    return Corrupt(database_, record.name, "it has no revision");
  }

  absl::Status CheckAllTaken() const { return present_ ? Orphan() : absl::OkStatus(); }

 private:
  RevisionRows(const SqliteDatabase& database, SqliteStatement statement)
      : database_(database), statement_(std::move(statement)) {}

  absl::Status Advance() {
    ASSIGN_OR_RETURN(present_, statement_.Next());
    if (!present_) return absl::OkStatus();
    revision_ = {};
    absl::Status status = DecodeRevision(statement_, adapter_, position_, revision_);
    return status.ok() ? status
                       : Corrupt(database_, adapter_, static_cast<std::string>(status.message()));
  }

  absl::Status Orphan() const {
    return Corrupt(database_, adapter_, "it has revisions but no row of its own");
  }

  const SqliteDatabase& database_;
  SqliteStatement statement_;
  bool present_ = false;
  std::string adapter_;
  int64_t position_ = 0;
  RevisionRecord revision_;
};

}  // namespace

absl::StatusOr<std::vector<AdapterRecord>> ReadRecords(SqliteDatabase& database) {
  ASSIGN_OR_RETURN(SqliteStatement adapters, database.Prepare(kReadAdapters));
  // Its first row holds a snapshot, which the query above joins.
  ASSIGN_OR_RETURN(RevisionRows revisions, RevisionRows::Open(database));
  std::vector<AdapterRecord> records;
  while (true) {
    ASSIGN_OR_RETURN(const bool found, adapters.Next());
    if (!found) break;
    AdapterRecord& record = records.emplace_back();
    const absl::Status status = DecodeAdapter(adapters, record);
    if (!status.ok()) {
      return Corrupt(database, record.name, static_cast<std::string>(status.message()));
    }
    RETURN_IF_ERROR(revisions.Take(record));
  }
  RETURN_IF_ERROR(revisions.CheckAllTaken());
  return records;
}

}  // namespace adapterd
