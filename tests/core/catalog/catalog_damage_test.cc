// Files that are not, or no longer, a catalogue of ours.
#include <filesystem>

#include "core/catalog/schema.h"
#include "tests/core/catalog/records.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class CatalogDamageTest : public ::testing::Test {
 protected:
  CatalogDamageTest() : data_dir_(dir_ / "data"), file_(data_dir_ + "/" + kCatalogueFile) {}

  // A catalogue of many pages, closed.
  void Fill() {
    auto catalog = OpenCatalog(data_dir_);
    for (int i = 0; i < 20; ++i) {
      ASSERT_THAT(catalog->Put(FullRecord("adapter-" + std::to_string(10 + i))), IsOk());
    }
  }

  // One line that names the folder and says what to do.
  void ExpectRefused(Reason reason, std::string_view problem) {
    const absl::Status status = SqliteCatalog::Open(data_dir_).status();
    EXPECT_THAT(status, HasReason(reason));
    EXPECT_THAT(status,
                HasMessage(testing::AllOf(HasSubstr(data_dir_), HasSubstr(std::string(problem)),
                                          Not(HasSubstr("\n")))));
  }

  TempDir dir_;
  std::string data_dir_;
  std::filesystem::path file_;
};

TEST_F(CatalogDamageTest, GarbageIsRefusedAndLeftAlone) {
  for (const std::string& garbage : {std::string("x"), std::string(600, '\0'),
                                     std::string(4096, 'g'), std::string(100'000, '\xff')}) {
    dir_.Write("data/catalogue.sqlite", garbage);
    ExpectRefused(Reason::kStoreCorrupt, "restore a backup");
    EXPECT_TRUE(ReadFile(file_) == garbage);
  }
}

TEST_F(CatalogDamageTest, AnEmptyFileIsNotANewCatalogue) {
  dir_.Write("data/catalogue.sqlite", "");
  ExpectRefused(Reason::kStoreCorrupt,
                "has lost its content (expected 512 bytes or more, found 0)");
}

TEST_F(CatalogDamageTest, ATruncatedFileIsRefused) {
  Fill();
  const std::string whole = ReadFile(file_);
  for (const size_t bytes : {size_t{50}, size_t{100}, size_t{4096}, size_t{8192}, whole.size() / 2,
                             whole.size() - 4096, whole.size() - 1000}) {
    SCOPED_TRACE(bytes);
    dir_.Write("data/catalogue.sqlite", whole.substr(0, bytes));
    ExpectRefused(Reason::kStoreCorrupt, "restore a backup");
  }
  dir_.Write("data/catalogue.sqlite", whole);
  EXPECT_EQ(RecordsOf(*OpenCatalog(data_dir_)).size(), 20U);
}

TEST_F(CatalogDamageTest, AnOverwrittenPageIsRefused) {
  Fill();
  std::string bytes = ReadFile(file_);
  ASSERT_GT(bytes.size(), 6U * 4096);
  constexpr size_t kPage = 4096;
  bytes.replace(5 * kPage, kPage, std::string(kPage, 'z'));
  dir_.Write("data/catalogue.sqlite", bytes);
  ExpectRefused(Reason::kStoreCorrupt, "the file is damaged");
}

TEST_F(CatalogDamageTest, ALogWithoutItsFileIsRefused) {
  Fill();
  std::filesystem::remove(file_);
  dir_.Write("data/catalogue.sqlite-wal", "log");
  ExpectRefused(Reason::kStoreCorrupt, "catalogue.sqlite is missing");
}

TEST_F(CatalogDamageTest, ACreationThatWasCutShortIsBegunAnew) {
  dir_.Write("data/catalogue.sqlite.new", "half");
  dir_.Write("data/catalogue.sqlite.new-journal", "half");
  EXPECT_TRUE(RecordsOf(*OpenCatalog(data_dir_)).empty());
  EXPECT_FALSE(std::filesystem::exists(file_.string() + ".new"));
}

TEST_F(CatalogDamageTest, AnotherProgramsDatabaseIsRefused) {
  std::filesystem::create_directory(data_dir_);
  dir_.Write("data/catalogue.sqlite", "");
  Damage(data_dir_, "CREATE TABLE theirs (x)");
  ExpectRefused(Reason::kStoreCorrupt, "another program");
  Damage(data_dir_, "PRAGMA user_version = 1");
  ExpectRefused(Reason::kStoreCorrupt, "another program");
}

TEST_F(CatalogDamageTest, ANewerSchemaIsRefusedAndLeftAlone) {
  Fill();
  Damage(data_dir_, "PRAGMA user_version = 1000");
  const std::string before = ReadFile(file_);
  ExpectRefused(Reason::kNotImplemented,
                "has schema version 1000, this adapterd knows versions up to 3;");
  EXPECT_TRUE(ReadFile(file_) == before);
  Damage(data_dir_, "PRAGMA user_version = -1");
  ExpectRefused(Reason::kNotImplemented, "version -1");
}

TEST_F(CatalogDamageTest, AMissingTableIsRefused) {
  Fill();
  Damage(data_dir_, "DROP TABLE revisions");
  ExpectRefused(Reason::kStoreCorrupt, "no such table: revisions");
}

struct BadRow {
  const char* sql;
  const char* adapter;
  const char* problem;
};

class BadRowTest : public CatalogDamageTest, public ::testing::WithParamInterface<BadRow> {};

TEST_P(BadRowTest, IsRefusedByTheNameOfItsAdapter) {
  {
    auto catalog = OpenCatalog(data_dir_);
    for (const char* name : {"a", "b", "c"}) ASSERT_THAT(catalog->Put(FullRecord(name)), IsOk());
  }
  Damage(data_dir_, GetParam().sql);
  auto catalog = OpenCatalog(data_dir_);
  ASSERT_NE(catalog, nullptr);
  const absl::Status status = catalog->ReadAll().status();
  EXPECT_THAT(status, HasReason(Reason::kStoreCorrupt));
  EXPECT_THAT(status, HasErrorMetadata("adapter", GetParam().adapter));
  EXPECT_THAT(status, HasMessage(testing::AllOf(
                          HasSubstr("adapter \"" + std::string(GetParam().adapter) + "\": "),
                          HasSubstr(GetParam().problem), HasSubstr(data_dir_))));
  // What names the adapter again mends it.
  if (std::string_view(GetParam().adapter) == "b") {
    ASSERT_THAT(catalog->Put(FullRecord("b")), IsOk());
    EXPECT_THAT(RecordsOf(*catalog),
                ElementsAre(FullRecord("a"), FullRecord("b"), FullRecord("c")));
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, BadRowTest,
    ::testing::Values(
        BadRow{"UPDATE adapters SET labels = '{\"a\":' WHERE name = 'b'", "b",
               "labels: expected an object of strings, found"},
        BadRow{"UPDATE adapters SET labels = '[]' WHERE name = 'b'", "b", "labels"},
        BadRow{"UPDATE adapters SET labels = '' WHERE name = 'b'", "b", "labels"},
        BadRow{"UPDATE adapters SET aliases = '{\"a\":1}' WHERE name = 'b'", "b", "aliases"},
        BadRow{"UPDATE adapters SET pinned = 2 WHERE name = 'b'", "b", "expected 0 or 1, found 2"},
        BadRow{"UPDATE adapters SET enabled = -1 WHERE name = 'c'", "c",
               "expected 0 or 1, found -1"},
        BadRow{"UPDATE revisions SET warnings = '[1]' WHERE adapter = 'b' AND position = 1", "b",
               "warnings: expected an array of strings, found"},
        BadRow{"UPDATE revisions SET description = 'null' WHERE adapter = 'b' AND position = 0",
               "b", "description: expected an object"},
        BadRow{"UPDATE revisions SET description = json_remove(description, '$.ranks') "
               "WHERE adapter = 'b'",
               "b", "a key \"ranks\""},
        BadRow{"UPDATE revisions SET description = json_set(description, '$.other', 1) "
               "WHERE adapter = 'b'",
               "b", "expected 11 keys"},
        BadRow{"UPDATE revisions SET description = json_set(description, '$.format', 'pickle') "
               "WHERE adapter = 'b'",
               "b", "description.format"},
        BadRow{"UPDATE revisions SET description = json_set(description, '$.ranks[0]', 3000000000) "
               "WHERE adapter = 'b'",
               "b", "description.ranks"},
        BadRow{"UPDATE revisions SET description = json_set(description, '$.file_bytes', -1) "
               "WHERE adapter = 'b'",
               "b", "description.file_bytes"},
        BadRow{"UPDATE revisions SET description = json_set(description, '$.layer_count', 1.5) "
               "WHERE adapter = 'b'",
               "b", "description.layer_count"},
        BadRow{"UPDATE revisions SET memory_bytes = -1 WHERE adapter = 'b'", "b",
               "memory_bytes: expected 0 or more, found -1"},
        BadRow{"UPDATE revisions SET position = 7 WHERE adapter = 'b' AND position = 2", "b",
               "expected a revision at position 2, found 7"},
        BadRow{"DELETE FROM revisions WHERE adapter = 'b' AND position = 0", "b",
               "expected a revision at position 0, found 1"},
        BadRow{"DELETE FROM revisions WHERE adapter = 'b'", "b", "has no revision"},
        BadRow{"DELETE FROM adapters WHERE name = 'b'", "b", "no row of its own"},
        BadRow{"DELETE FROM adapters WHERE name = 'c'", "c", "no row of its own"}));

}  // namespace
}  // namespace adapterd
