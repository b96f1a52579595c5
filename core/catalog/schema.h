// The tables of the catalogue, and how older files become what they are now.
//
//   adapters   one row an adapter: name, public_id, etag, pinned, enabled; labels and aliases as
//              JSON objects of strings
//   revisions  one row a revision of it: position 0 is the current one, 1 and on the kept ones,
//              newest first; times as integer nanoseconds (since 1970), warnings and description
//              as JSON
//
// PRAGMA user_version counts the migrations that a file has been through; PRAGMA application_id
// tells our files from other programs'.
#ifndef ADAPTERD_CORE_CATALOG_SCHEMA_H_
#define ADAPTERD_CORE_CATALOG_SCHEMA_H_

#include <span>

#include "absl/status/status.h"
#include "core/catalog/sqlite_database.h"

namespace adapterd {

inline constexpr int kCatalogueApplicationId = 0x61647064;  // "adpd"

// Migration i leads from version i to i + 1. A released one is never changed; the next is appended.
std::span<const char* const> CatalogueMigrations();

// Checks that the file is ours, of a known version and sound, before anything writes to it, then
// applies the migrations that it lacks, each in a transaction of its own. Reads the whole file
// once. STORE_CORRUPT; NOT_IMPLEMENTED: written by a newer version; errors of SqliteDatabase.
absl::Status CheckAndMigrate(SqliteDatabase& database, std::span<const char* const> migrations);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_SCHEMA_H_
