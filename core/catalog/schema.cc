#include "core/catalog/schema.h"

#include <fmt/format.h>

#include <cstdint>
#include <string>

#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

// STRICT, so that the check at start sees columns of another type. No foreign keys: rows of a name
// are always written together, and reading checks that they fit.
constexpr char kVersion1[] = R"(
  PRAGMA application_id = 0x61647064;
  CREATE TABLE adapters (
    name TEXT NOT NULL PRIMARY KEY,
    public_id TEXT NOT NULL,
    etag TEXT NOT NULL,
    pinned INTEGER NOT NULL,
    enabled INTEGER NOT NULL,
    labels TEXT NOT NULL,
    aliases TEXT NOT NULL
  ) STRICT;
  CREATE TABLE revisions (
    adapter TEXT NOT NULL,
    position INTEGER NOT NULL,
    revision TEXT NOT NULL,
    derived_digest TEXT NOT NULL,
    weights_sha256 TEXT NOT NULL,
    source TEXT NOT NULL,
    base_model TEXT NOT NULL,
    base_checkpoint TEXT NOT NULL,
    stored TEXT NOT NULL,
    memory_bytes INTEGER NOT NULL,
    load_time_ns INTEGER NOT NULL,
    load_duration_ns INTEGER NOT NULL,
    warnings TEXT NOT NULL,
    description TEXT NOT NULL,
    PRIMARY KEY (adapter, position)
  ) STRICT;
)";

constexpr char kVersion2[] = R"(
  ALTER TABLE revisions ADD COLUMN hosted_base TEXT NOT NULL DEFAULT '';
)";

// 0: the request gave none.
constexpr char kVersion3[] = R"(
  ALTER TABLE revisions ADD COLUMN num_attention_heads INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE revisions ADD COLUMN num_key_value_heads INTEGER NOT NULL DEFAULT 0;
)";

constexpr const char* kMigrations[] = {kVersion1, kVersion2, kVersion3};

absl::Status NotOurs(const SqliteDatabase& database) {
  return Error(Reason::kStoreCorrupt,
               fmt::format("{}: the file is a database of another program; move it away, or give "
                           "adapterd a data directory of its own",
                           database.title()));
}

absl::Status CheckOrigin(SqliteDatabase& database, int64_t version) {
  if (version == 0) {
    ASSIGN_OR_RETURN(const int64_t tables,
                     database.QueryInteger("SELECT count(*) FROM sqlite_schema"));
    return tables == 0 ? absl::OkStatus() : NotOurs(database);
  }
  ASSIGN_OR_RETURN(const int64_t id, database.QueryInteger("PRAGMA application_id"));
  return id == kCatalogueApplicationId ? absl::OkStatus() : NotOurs(database);
}

absl::Status CheckVersion(const SqliteDatabase& database, int64_t version, int64_t newest) {
  if (version >= 0 && version <= newest) return absl::OkStatus();
  return Error(Reason::kNotImplemented,
               fmt::format("{}: it has schema version {}, this adapterd knows versions up to {}; "
                           "start the adapterd that wrote it or a newer one, or restore a backup "
                           "from before the upgrade",
                           database.title(), version, newest))
      .With("expected", newest)
      .With("actual", version);
}

// Not integrity_check: that also compares indexes with tables, which costs several times as much.
absl::Status CheckIntegrity(SqliteDatabase& database) {
  ASSIGN_OR_RETURN(const std::string finding, database.QueryText("PRAGMA quick_check(1)"));
  if (finding == "ok") return absl::OkStatus();
  return Error(Reason::kStoreCorrupt,
               fmt::format("{}: the file is damaged ({}); restore a backup, or move the file away "
                           "and load the adapters again",
                           database.title(), Printable(finding)));
}

absl::Status Apply(SqliteDatabase& database, const char* migration, int64_t version) {
  absl::Status status = database.Execute(
      fmt::format("BEGIN IMMEDIATE; {}; PRAGMA user_version = {}; COMMIT", migration, version));
  if (!status.ok()) database.RollBack();
  return status;
}

}  // namespace

std::span<const char* const> CatalogueMigrations() { return kMigrations; }

absl::Status CheckAndMigrate(SqliteDatabase& database, std::span<const char* const> migrations) {
  ASSIGN_OR_RETURN(const int64_t version, database.QueryInteger("PRAGMA user_version"));
  RETURN_IF_ERROR(CheckOrigin(database, version));
  const auto newest = static_cast<int64_t>(migrations.size());
  RETURN_IF_ERROR(CheckVersion(database, version, newest));
  RETURN_IF_ERROR(CheckIntegrity(database));
  for (int64_t next = version; next < newest; ++next) {
    RETURN_IF_ERROR(Apply(database, migrations[static_cast<size_t>(next)], next + 1));
  }
  return absl::OkStatus();
}

}  // namespace adapterd
