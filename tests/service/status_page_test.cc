#include "service/status_page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>

#include "absl/strings/str_replace.h"
#include "core/base/error.h"
#include "service/status_query.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

AdapterSnapshot Snapshot(const std::string& name, int64_t memory_bytes, int64_t uses,
                         std::optional<absl::Time> last_use, const std::string& base_model = "") {
  AdapterSnapshot adapter;
  adapter.name = name;
  adapter.state = memory_bytes > 0 ? AdapterState::kReady : AdapterState::kEvicted;
  adapter.source = "team/" + name;
  adapter.memory_bytes = memory_bytes;
  adapter.use_count = uses;
  adapter.last_use_time = last_use;
  AdapterDescription description;
  description.base_model = base_model;
  adapter.description = std::make_shared<const AdapterDescription>(std::move(description));
  return adapter;
}

std::vector<std::string> Names(const std::vector<AdapterSnapshot>& all, const StatusQuery& query) {
  std::vector<std::string> names;
  for (const AdapterSnapshot* adapter : Select(all, query)) names.push_back(adapter->name);
  return names;
}

class StatusQueryTest : public ::testing::Test {
 protected:
  const absl::Time now_ = absl::FromUnixSeconds(1000);
  const std::vector<AdapterSnapshot> all_ = {
      Snapshot("a", 10, 5, now_, "llama"), Snapshot("b", 30, 5, std::nullopt, "llama"),
      Snapshot("c", 0, 9, now_ - absl::Seconds(1), "qwen"), Snapshot("d", 20, 0, std::nullopt)};
};

TEST_F(StatusQueryTest, WithoutAQueryAllAreThereByName) {
  EXPECT_THAT(Names(all_, {}), ElementsAre("a", "b", "c", "d"));
}

TEST_F(StatusQueryTest, OrdersPutTheLargestAndTheLatestFirstAndEqualOnesByName) {
  StatusQuery query;
  query.order = StatusQuery::Order::kMemory;
  EXPECT_THAT(Names(all_, query), ElementsAre("b", "d", "a", "c"));
  query.order = StatusQuery::Order::kUses;
  EXPECT_THAT(Names(all_, query), ElementsAre("c", "a", "b", "d"));
  query.order = StatusQuery::Order::kLastUse;
  EXPECT_THAT(Names(all_, query), ElementsAre("a", "c", "b", "d"));
}

TEST_F(StatusQueryTest, FiltersMatchNameSourceAndBaseModel) {
  StatusQuery query;
  query.filter = "lla";
  EXPECT_THAT(Names(all_, query), ElementsAre("a", "b"));
  query.filter = "team/d";
  EXPECT_THAT(Names(all_, query), ElementsAre("d"));
  query.filter = "c";
  query.state = AdapterState::kEvicted;
  EXPECT_THAT(Names(all_, query), ElementsAre("c"));
  query.state = AdapterState::kFailed;
  EXPECT_THAT(Names(all_, query), IsEmpty());
}

TEST_F(StatusQueryTest, AQueryStringIsReadOrRefused) {
  ASSERT_OK_AND_ASSIGN(const StatusQuery empty, ReadStatusQuery({}));
  EXPECT_EQ(empty.order, StatusQuery::Order::kName);
  EXPECT_EQ(empty.page, 0u);
  ASSERT_OK_AND_ASSIGN(
      const StatusQuery full,
      ReadStatusQuery(
          {{"filter", "x y"}, {"state", "failed"}, {"order", "last_use"}, {"page", "12"}}));
  EXPECT_EQ(full.filter, "x y");
  EXPECT_EQ(full.state, AdapterState::kFailed);
  EXPECT_EQ(full.order, StatusQuery::Order::kLastUse);
  EXPECT_EQ(full.page, 12u);
  ASSERT_OK_AND_ASSIGN(const StatusQuery any, ReadStatusQuery({{"state", ""}}));
  EXPECT_EQ(any.state, std::nullopt);
  const std::multimap<std::string, std::string> bad = {
      {"state", "READY"}, {"order", "size"}, {"page", "-1"},
      {"page", ""},       {"page", "1x"},    {"page", "99999999999999999999"}};
  for (const auto& each : bad) {
    EXPECT_THAT(ReadStatusQuery({each}), HasReason(Reason::kInvalidField)) << each.second;
  }
}

TEST(StatusPageTest, ThePolicyAllowsThePagesOwnScriptAndStyleAlone) {
  const std::string& policy = StatusPagePolicy();
  EXPECT_THAT(policy, HasSubstr("default-src 'none'; script-src 'sha256-"));
  EXPECT_THAT(policy, HasSubstr("style-src 'sha256-"));
  EXPECT_THAT(policy, Not(HasSubstr("unsafe")));
}

TEST(StatusPageTest, ThePageBringsAllThatItNeeds) {
  std::string html = StatusPageHtml();
  EXPECT_THAT(html, HasSubstr("<!DOCTYPE html>"));
  html = absl::StrReplaceAll(html, {{"http://www.w3.org/2000/svg", ""}});  // a name, not an address
  for (const char* outside : {"http:", "https:", " src=", "@import", "url(", "innerHTML"}) {
    EXPECT_EQ(html.find(outside), std::string::npos) << outside;
  }
}

}  // namespace
}  // namespace adapterd
