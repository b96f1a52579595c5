#include <fmt/format.h>

#include <initializer_list>
#include <limits>

#include "absl/time/time.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/catalog/record_codec.h"
#include "core/catalog/record_rows.h"

namespace adapterd {
namespace {

constexpr char kPutAdapter[] = R"(
  INSERT INTO adapters (name, public_id, etag, pinned, enabled, labels, aliases)
  VALUES (?, ?, ?, ?, ?, ?, ?)
  ON CONFLICT (name) DO UPDATE SET
    public_id = excluded.public_id, etag = excluded.etag, pinned = excluded.pinned,
    enabled = excluded.enabled, labels = excluded.labels, aliases = excluded.aliases)";

constexpr char kPutRevision[] = R"(
  INSERT INTO revisions (adapter, position, revision, derived_digest, weights_sha256, source,
                         base_model, base_checkpoint, stored, memory_bytes, load_time_ns,
                         load_duration_ns, warnings, description, hosted_base,
                         num_attention_heads, num_key_value_heads)
  VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?))";

// Of a row besides its text: integers and SQLite's own bookkeeping.
constexpr size_t kRowOverheadBytes = 1024;

absl::Status CheckSize(std::string_view row, std::initializer_list<std::string_view> texts) {
  size_t bytes = kRowOverheadBytes;
  for (const std::string_view text : texts) bytes += text.size();
  if (bytes <= static_cast<size_t>(kMaxRowBytes)) return absl::OkStatus();
  return Error(Reason::kInvalidField,
               fmt::format("{}: {} bytes, more than {}", row, bytes, kMaxRowBytes));
}

// absl's own conversion stops at the ends of 64 bits without a word.
absl::StatusOr<int64_t> Nanoseconds(std::string_view what, absl::Duration duration) {
  constexpr absl::Duration kEnd = absl::Nanoseconds(std::numeric_limits<int64_t>::max());
  if (-kEnd < duration && duration < kEnd) return absl::ToInt64Nanoseconds(duration);
  return Error(Reason::kInvalidField,
               fmt::format("{}: {} is out of range", what, absl::FormatDuration(duration)));
}

absl::StatusOr<EncodedRevision> EncodeRevision(const std::string& name,
                                               const RevisionRecord& record) {
  if (record.memory_bytes < 0) {
    return Error(Reason::kInvalidField,
                 fmt::format("memory_bytes: {} is below zero", record.memory_bytes));
  }
  EncodedRevision encoded;
  ASSIGN_OR_RETURN(encoded.load_time_ns,
                   Nanoseconds("load_time", record.load_time - absl::UnixEpoch()));
  ASSIGN_OR_RETURN(encoded.load_duration_ns, Nanoseconds("load_duration", record.load_duration));
  ASSIGN_OR_RETURN(encoded.warnings, EncodeList("warnings", record.warnings));
  ASSIGN_OR_RETURN(encoded.description, EncodeDescription("description", record.description));
  const SourceSpec& source = record.source;
  RETURN_IF_ERROR(CheckSize(
      "a revision", {name, record.revision, record.derived_digest, record.weights_sha256,
                     source.source, source.base_model, source.base_checkpoint, source.stored,
                     encoded.warnings, encoded.description, source.hosted_base}));
  return encoded;
}

absl::StatusOr<EncodedRecord> Encode(const AdapterRecord& record) {
  EncodedRecord encoded;
  ASSIGN_OR_RETURN(encoded.labels, EncodeMap("labels", record.labels));
  ASSIGN_OR_RETURN(encoded.aliases, EncodeMap("aliases", record.aliases));
  RETURN_IF_ERROR(CheckSize("its own fields", {record.name, record.public_id, record.etag,
                                               encoded.labels, encoded.aliases}));
  ASSIGN_OR_RETURN(encoded.revisions.emplace_back(), EncodeRevision(record.name, record.current));
  for (const RevisionRecord& kept : record.kept) {
    ASSIGN_OR_RETURN(encoded.revisions.emplace_back(), EncodeRevision(record.name, kept));
  }
  return encoded;
}

}  // namespace

absl::StatusOr<EncodedRecord> EncodeRecord(const AdapterRecord& record) {
  auto encoded = Encode(record);
  if (encoded.ok()) return encoded;
  const absl::Status& status = encoded.status();
  const ErrorDetails details = GetErrorDetails(status);
  return Error(details.reason,
               fmt::format("adapter {} cannot be written to the catalogue: {}", Quoted(record.name),
                           std::string_view(status.message().data(), status.message().size())))
      .With("adapter", record.name);
}

absl::StatusOr<RecordWriter> RecordWriter::Prepare(SqliteDatabase& database) {
  ASSIGN_OR_RETURN(auto put_adapter, database.Prepare(kPutAdapter));
  ASSIGN_OR_RETURN(auto put_revision, database.Prepare(kPutRevision));
  ASSIGN_OR_RETURN(auto erase_adapter, database.Prepare("DELETE FROM adapters WHERE name = ?"));
  ASSIGN_OR_RETURN(auto erase_revisions,
                   database.Prepare("DELETE FROM revisions WHERE adapter = ?"));
  return RecordWriter(std::move(put_adapter), std::move(put_revision), std::move(erase_adapter),
                      std::move(erase_revisions));
}

absl::Status RecordWriter::Put(const AdapterRecord& record, const EncodedRecord& encoded) {
  RETURN_IF_ERROR(put_adapter_.Run(record.name, record.public_id, record.etag, record.pinned,
                                   record.enabled, encoded.labels, encoded.aliases));
  RETURN_IF_ERROR(erase_revisions_.Run(record.name));
  RETURN_IF_ERROR(PutRevision(record.name, 0, record.current, encoded.revisions.front()));
  for (size_t i = 0; i < record.kept.size(); ++i) {
    RETURN_IF_ERROR(PutRevision(record.name, static_cast<int64_t>(i) + 1, record.kept[i],
                                encoded.revisions[i + 1]));
  }
  return absl::OkStatus();
}

absl::Status RecordWriter::PutRevision(const std::string& name, int64_t position,
                                       const RevisionRecord& record,
                                       const EncodedRevision& encoded) {
  const SourceSpec& source = record.source;
  const HeadCounts heads = source.head_counts.value_or(HeadCounts());
  return put_revision_.Run(
      name, position, record.revision, record.derived_digest, record.weights_sha256, source.source,
      source.base_model, source.base_checkpoint, source.stored, record.memory_bytes,
      encoded.load_time_ns, encoded.load_duration_ns, encoded.warnings, encoded.description,
      source.hosted_base, heads.num_attention_heads, heads.num_key_value_heads);
}

absl::Status RecordWriter::Erase(const std::string& name) {
  RETURN_IF_ERROR(erase_revisions_.Run(name));
  return erase_adapter_.Run(name);
}

}  // namespace adapterd
