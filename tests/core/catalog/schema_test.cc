#include "core/catalog/schema.h"

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;

constexpr char kFirst[] =
    "PRAGMA application_id = 0x61647064; CREATE TABLE one (x); INSERT INTO one VALUES (1)";
constexpr char kSecond[] = "CREATE TABLE two (x); UPDATE one SET x = x + 1";
constexpr char kBroken[] = "CREATE TABLE three (x); UPDATE missing SET x = 1";

class SchemaTest : public ::testing::Test {
 protected:
  SchemaTest() {
    auto database = SqliteDatabase::Open(dir_.Write("file", ""), "the file");
    EXPECT_THAT(database, IsOk());
    database_ = *std::move(database);
  }

  int64_t Ask(std::string_view sql) { return database_->QueryInteger(sql).value_or(-1); }
  int64_t Tables() { return Ask("SELECT count(*) FROM sqlite_schema"); }

  TempDir dir_;
  std::unique_ptr<SqliteDatabase> database_;
};

TEST_F(SchemaTest, AnEmptyDatabaseGoesThroughAllMigrations) {
  const std::vector<const char*> both = {kFirst, kSecond};
  ASSERT_THAT(CheckAndMigrate(*database_, both), IsOk());
  EXPECT_EQ(Ask("PRAGMA user_version"), 2);
  EXPECT_EQ(Ask("SELECT x FROM one"), 2);
}

TEST_F(SchemaTest, OnlyWhatIsMissingIsApplied) {
  const std::vector<const char*> first = {kFirst};
  const std::vector<const char*> both = {kFirst, kSecond};
  ASSERT_THAT(CheckAndMigrate(*database_, first), IsOk());
  EXPECT_EQ(Ask("PRAGMA user_version"), 1);
  ASSERT_THAT(CheckAndMigrate(*database_, both), IsOk());
  ASSERT_THAT(CheckAndMigrate(*database_, both), IsOk());
  EXPECT_EQ(Ask("SELECT x FROM one"), 2);
}

TEST_F(SchemaTest, AMigrationThatFailsLeavesTheFormerVersion) {
  const std::vector<const char*> broken = {kFirst, kBroken, kSecond};
  EXPECT_THAT(CheckAndMigrate(*database_, broken), HasMessage(HasSubstr("no such table: missing")));
  EXPECT_EQ(Ask("PRAGMA user_version"), 1);
  EXPECT_EQ(Tables(), 1);
  const std::vector<const char*> mended = {kFirst, kSecond};
  EXPECT_THAT(CheckAndMigrate(*database_, mended), IsOk());
}

TEST_F(SchemaTest, TheCataloguesOwnMigrationsMarkTheFileAsOurs) {
  ASSERT_THAT(CheckAndMigrate(*database_, CatalogueMigrations()), IsOk());
  EXPECT_EQ(Ask("PRAGMA application_id"), kCatalogueApplicationId);
  EXPECT_EQ(Ask("PRAGMA user_version"), static_cast<int64_t>(CatalogueMigrations().size()));
}

TEST_F(SchemaTest, ARevisionOfTheFirstVersionHasNoHostedBase) {
  ASSERT_THAT(CheckAndMigrate(*database_, CatalogueMigrations().first(1)), IsOk());
  ASSERT_THAT(database_->Execute("INSERT INTO revisions VALUES ('a', 0, 'r', 'd', 'w', 's', 'b', "
                                 "'c', 'k', 1, 2, 3, '[]', '{}')"),
              IsOk());
  ASSERT_THAT(CheckAndMigrate(*database_, CatalogueMigrations()), IsOk());
  EXPECT_EQ(Ask("SELECT count(*) FROM revisions WHERE hosted_base = ''"), 1);
}

TEST_F(SchemaTest, AWriteLockOfAnotherConnectionIsUnavailableNotCorrupt) {
  ASSERT_THAT(database_->Execute("CREATE TABLE one (x); BEGIN IMMEDIATE"), IsOk());
  ASSERT_OK_AND_ASSIGN(auto other, SqliteDatabase::Open(dir_ / "file", "the other"));
  ASSERT_THAT(other->Execute("PRAGMA busy_timeout = 0"), IsOk());
  const absl::Status status = other->Execute("INSERT INTO one VALUES (1)");
  EXPECT_THAT(status, HasReason(Reason::kSourceUnavailable));
  EXPECT_THAT(status, HasMessage(HasSubstr("the other: database is locked")));
  database_->RollBack();
  EXPECT_THAT(other->Execute("INSERT INTO one VALUES (1)"), IsOk());
}

TEST_F(SchemaTest, AColumnOfAnotherTypeIsNamed) {
  ASSERT_OK_AND_ASSIGN(SqliteStatement row, database_->Prepare("SELECT 1.5 AS a, NULL AS b"));
  ASSERT_THAT(row.Next(), IsOk());
  EXPECT_THAT(row.Integer(0), HasMessage("column a: expected an integer, found a real number"));
  EXPECT_THAT(row.Text(1), HasMessage("column b: expected text, found NULL"));
  EXPECT_THAT(row.Text(1), HasReason(Reason::kStoreCorrupt));
}

}  // namespace
}  // namespace adapterd
