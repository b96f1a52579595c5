#include "core/catalog/sqlite_catalog.h"

#include <fmt/format.h>

#include <fstream>
#include <limits>
#include <thread>

#include "core/catalog/schema.h"
#include "tests/core/catalog/records.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class SqliteCatalogTest : public ::testing::Test {
 protected:
  SqliteCatalogTest() : data_dir_(dir_ / "data"), catalog_(OpenCatalog(data_dir_)) {}

  void Reopen() {
    catalog_.reset();
    catalog_ = OpenCatalog(data_dir_);
  }

  TempDir dir_;
  std::string data_dir_;
  std::unique_ptr<SqliteCatalog> catalog_;
};

TEST_F(SqliteCatalogTest, ANewOneIsEmpty) { EXPECT_THAT(RecordsOf(*catalog_), IsEmpty()); }

TEST_F(SqliteCatalogTest, EveryFieldComesBack) {
  const AdapterRecord full = FullRecord("full");
  const AdapterRecord small = SmallRecord("small");
  ASSERT_THAT(catalog_->Put(small), IsOk());
  ASSERT_THAT(catalog_->Put(full), IsOk());
  EXPECT_THAT(RecordsOf(*catalog_), ElementsAre(full, small));
  Reopen();
  EXPECT_THAT(RecordsOf(*catalog_), ElementsAre(full, small));
}

// As an adapterd wrote it that knew no head counts.
TEST_F(SqliteCatalogTest, RecordsOfTheFirstVersionHaveNoHeads) {
  const std::string data_dir = dir_ / "old";
  std::filesystem::create_directory(data_dir);
  std::ofstream(data_dir + "/" + kCatalogueFile);
  {
    ASSERT_OK_AND_ASSIGN(auto database,
                         SqliteDatabase::Open(data_dir + "/" + kCatalogueFile, "old"));
    ASSERT_THAT(CheckAndMigrate(*database, CatalogueMigrations().first(1)), IsOk());
    ASSERT_THAT(database->Execute(R"(
      INSERT INTO adapters VALUES ('x', 'id', 'etag', 0, 1, '{}', '{}');
      INSERT INTO revisions VALUES ('x', 0, 'r', 'd', 'w', 'folder', 'base', '', '', 5, 6, 7, '[]',
        '{"format":"peft","method":"lora","base_model":"","ranks":[],"target_modules":[],
          "layer_count":0,"module_count":0,"parameter_count":0,"original_parameter_count":0,
          "file_bytes":0,"lora_dropout":0.0}'))"),
                IsOk());
  }
  const auto catalog = OpenCatalog(data_dir);
  ASSERT_NE(catalog, nullptr);
  const auto records = RecordsOf(*catalog);
  ASSERT_THAT(records, SizeIs(1));
  EXPECT_EQ(records[0].current.source.source, "folder");
  EXPECT_EQ(records[0].current.source.head_counts, std::nullopt);
}

TEST_F(SqliteCatalogTest, RecordsComeByName) {
  for (const char* name : {"b", "a.b", "B", "_", "a", "10", "9", "a-b"}) {
    ASSERT_THAT(catalog_->Put(SmallRecord(name)), IsOk());
  }
  std::vector<std::string> names;
  for (const AdapterRecord& record : RecordsOf(*catalog_)) names.push_back(record.name);
  EXPECT_THAT(names, ElementsAre("10", "9", "B", "_", "a", "a-b", "a.b", "b"));
}

TEST_F(SqliteCatalogTest, PutTakesThePlaceOfTheFormerRecord) {
  ASSERT_THAT(catalog_->Put(FullRecord("x")), IsOk());
  AdapterRecord next = FullRecord("x");
  next.etag = "etag-8";
  next.labels.clear();
  next.kept = {next.current};
  next.current = FullRevision(9);
  ASSERT_THAT(catalog_->Put(next), IsOk());
  EXPECT_THAT(RecordsOf(*catalog_), ElementsAre(next));
}

TEST_F(SqliteCatalogTest, ErasedRecordsAreGoneWithTheirRevisions) {
  ASSERT_THAT(catalog_->Put(FullRecord("x")), IsOk());
  ASSERT_THAT(catalog_->Put(FullRecord("y")), IsOk());
  EXPECT_THAT(catalog_->Erase("x"), IsOk());
  EXPECT_THAT(catalog_->Erase("never there"), IsOk());
  EXPECT_THAT(RecordsOf(*catalog_), ElementsAre(FullRecord("y")));
  Reopen();
  EXPECT_THAT(RecordsOf(*catalog_), ElementsAre(FullRecord("y")));
}

TEST_F(SqliteCatalogTest, ExtremeValuesComeBack) {
  AdapterRecord record = SmallRecord(std::string(128, 'n'));
  record.current.source.source = std::string("a\0b'; DROP TABLE adapters; --", 29);
  record.current.memory_bytes = std::numeric_limits<int64_t>::max();
  record.current.load_time = absl::FromUnixNanos(-1);
  record.current.description.ranks = {std::numeric_limits<int32_t>::max()};
  record.current.description.parameter_count = std::numeric_limits<int64_t>::max();
  record.current.description.lora_dropout = 0.1 + 0.2;
  record.labels = {{"", std::string(100'000, 'x')}, {std::string("a\0b", 3), "\x7f\x01"}};
  ASSERT_THAT(catalog_->Put(record), IsOk());
  EXPECT_THAT(RecordsOf(*catalog_), ElementsAre(record));
}

struct Unkeepable {
  const char* what;
  void (*change)(AdapterRecord& record);
};

class UnkeepableTest : public SqliteCatalogTest,
                       public ::testing::WithParamInterface<Unkeepable> {};

TEST_P(UnkeepableTest, IsRefusedAndTheFormerRecordStands) {
  ASSERT_THAT(catalog_->Put(FullRecord("x")), IsOk());
  AdapterRecord record = FullRecord("x");
  GetParam().change(record);
  const absl::Status status = catalog_->Put(record);
  EXPECT_THAT(status, HasReason(Reason::kInvalidField));
  EXPECT_THAT(status, HasMessage(HasSubstr("adapter \"x\"")));
  EXPECT_THAT(status, HasMessage(HasSubstr(GetParam().what)));
  EXPECT_THAT(status, HasErrorMetadata("adapter", "x"));
  EXPECT_THAT(RecordsOf(*catalog_), ElementsAre(FullRecord("x")));
}

INSTANTIATE_TEST_SUITE_P(
    All, UnkeepableTest,
    ::testing::Values(
        Unkeepable{"labels: not valid UTF-8", [](auto& r) { r.labels["a"] = "\xff"; }},
        Unkeepable{"aliases: not valid UTF-8", [](auto& r) { r.aliases["\xc3"] = "b"; }},
        Unkeepable{"warnings: not valid UTF-8",
                   [](auto& r) { r.kept[1].warnings.push_back("\x80"); }},
        Unkeepable{"description: not valid UTF-8",
                   [](auto& r) { r.current.description.target_modules = {"\xf0\x9f"}; }},
        Unkeepable{"description.lora_dropout",
                   [](auto& r) {
                     r.current.description.lora_dropout = std::numeric_limits<double>::quiet_NaN();
                   }},
        Unkeepable{"description.layer_count",
                   [](auto& r) { r.current.description.layer_count = -1; }},
        Unkeepable{"memory_bytes: -1", [](auto& r) { r.current.memory_bytes = -1; }},
        Unkeepable{"load_time", [](auto& r) { r.current.load_time = absl::InfinitePast(); }},
        Unkeepable{"load_duration",
                   [](auto& r) { r.kept[0].load_duration = absl::Hours(24 * 365 * 400); }},
        Unkeepable{"its own fields: ", [](auto& r) { r.labels["a"] = std::string(17 << 20, 'a'); }},
        Unkeepable{"a revision: ",
                   [](auto& r) { r.kept[0].warnings = {std::string(17 << 20, 'a')}; }}));

TEST_F(SqliteCatalogTest, ManyThreadsPutAtOnce) {
  constexpr int kThreads = 8;
  constexpr int kPuts = 20;
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < kPuts; ++i) {
        const std::string name = fmt::format("t{}-{}", t, i);
        EXPECT_THAT(catalog_->Put(SmallRecord(name)), IsOk());
        EXPECT_THAT(catalog_->Put(SmallRecord(fmt::format("shared{}", t), name)), IsOk());
        if (i % 2 == 1) {
          EXPECT_THAT(catalog_->Erase(name), IsOk());
        }
      }
    });
  }
  for (int i = 0; i < 5; ++i) RecordsOf(*catalog_);
  for (std::thread& thread : threads) thread.join();
  Reopen();
  const std::vector<AdapterRecord> records = RecordsOf(*catalog_);
  ASSERT_THAT(records, SizeIs(kThreads * kPuts / 2 + kThreads));
  for (int t = 0; t < kThreads; ++t) {
    EXPECT_EQ(records[static_cast<size_t>(t)],
              SmallRecord(fmt::format("shared{}", t), fmt::format("t{}-{}", t, kPuts - 1)));
  }
}

TEST_F(SqliteCatalogTest, AnOpenReaderHoldsNothingUpAndSeesItsSnapshot) {
  ASSERT_THAT(catalog_->Put(SmallRecord("a")), IsOk());
  ASSERT_OK_AND_ASSIGN(auto backup,
                       SqliteDatabase::Open(data_dir_ + "/" + kCatalogueFile, "backup"));
  ASSERT_THAT(backup->Execute("BEGIN"), IsOk());
  const char* count = "SELECT count(*) FROM adapters";
  EXPECT_EQ(backup->QueryInteger(count).value_or(-1), 1);
  ASSERT_THAT(catalog_->Put(SmallRecord("b")), IsOk());
  EXPECT_EQ(backup->QueryInteger(count).value_or(-1), 1);
  backup->RollBack();
  EXPECT_EQ(backup->QueryInteger(count).value_or(-1), 2);
}

TEST_F(SqliteCatalogTest, OnlyTheOwnerMayReadItsFiles) {
  ASSERT_THAT(catalog_->Put(SmallRecord("a")), IsOk());
  using std::filesystem::perms;
  const auto others = perms::group_all | perms::others_all;
  EXPECT_EQ(std::filesystem::status(data_dir_).permissions() & others, perms::none);
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(data_dir_)) {
    EXPECT_EQ(entry.status().permissions() & others, perms::none) << entry.path();
    ++files;
  }
  EXPECT_EQ(files, 4);  // lock, catalogue, its log and the log's index
}

}  // namespace
}  // namespace adapterd
