// Records for the tests of the catalogue.
#ifndef ADAPTERD_TESTS_CORE_CATALOG_RECORDS_H_
#define ADAPTERD_TESTS_CORE_CATALOG_RECORDS_H_

#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "core/catalog/sqlite_catalog.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {

// GoogleTest prints records by this instead of byte by byte.
inline void PrintTo(const AdapterRecord& record, std::ostream* os) {
  *os << record.name << " with etag " << record.etag << ", revision " << record.current.revision
      << " and " << record.kept.size() << " kept ones";
}

inline AdapterRecord SmallRecord(std::string name, std::string etag = "1") {
  AdapterRecord record;
  record.name = std::move(name);
  record.etag = std::move(etag);
  record.current.revision = "revision-" + record.etag;
  return record;
}

// A revision in which no field has its default, and no two fields are equal.
inline RevisionRecord FullRevision(int seed) {
  const std::string tag = std::to_string(seed);
  RevisionRecord record;
  record.revision = "revision" + tag;
  record.derived_digest = "derived" + tag;
  record.weights_sha256 = "sha" + tag;
  record.source = {"folder/" + tag, "base" + tag, "checkpoint" + tag, "stored" + tag};
  record.source.hosted_base = "hosted" + tag;
  record.source.head_counts = HeadCounts{32 + seed, 8 + seed};
  record.description.method = "dora" + tag;
  record.description.base_model = "org/model \"" + tag + "\" \xc3\xa4";
  record.description.ranks = {4, 8 + seed};
  record.description.target_modules = {"k_proj", "q_proj" + tag};
  record.description.layer_count = 32 + seed;
  record.description.module_count = 224 + seed;
  record.description.parameter_count = (int64_t{1} << 40) + seed;
  record.description.original_parameter_count = (int64_t{1} << 62) + seed;
  record.description.file_bytes = 123456789 + seed;
  record.description.lora_dropout = 0.1 + seed;
  record.warnings = {"first " + tag, "second\n\"" + tag + "\""};
  record.memory_bytes = (int64_t{1} << 33) + seed;
  record.load_time = absl::FromUnixNanos(1'700'000'000'123'456'789 + seed);
  record.load_duration = absl::Nanoseconds(987'654'321 + seed);
  return record;
}

inline AdapterRecord FullRecord(std::string name) {
  AdapterRecord record;
  record.name = std::move(name);
  record.public_id = "0123456789abcdef";
  record.etag = "etag-7";
  record.pinned = true;
  record.enabled = false;
  record.labels = {{"env", "prod"}, {"team", "a \"b\" \xe2\x82\xac"}};
  record.aliases = {{"best", "revision2"}, {"prod", "revision1"}};
  record.current = FullRevision(1);
  record.kept = {FullRevision(3), FullRevision(2)};
  return record;
}

inline std::unique_ptr<SqliteCatalog> OpenCatalog(const std::string& data_dir) {
  auto catalog = SqliteCatalog::Open(data_dir);
  EXPECT_THAT(catalog, IsOk());
  return catalog.ok() ? *std::move(catalog) : nullptr;
}

inline std::vector<AdapterRecord> RecordsOf(SqliteCatalog& catalog) {
  auto records = catalog.ReadAll();
  EXPECT_THAT(records, IsOk());
  return records.ok() ? *std::move(records) : std::vector<AdapterRecord>();
}

// Changes the catalogue behind our back. None may be open.
inline void Damage(const std::string& data_dir, const std::string& sql) {
  ASSERT_OK_AND_ASSIGN(auto database,
                       SqliteDatabase::Open(data_dir + "/" + kCatalogueFile, "damage"));
  EXPECT_THAT(database->Execute(sql), IsOk());
}

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_CORE_CATALOG_RECORDS_H_
