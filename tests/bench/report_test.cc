#include "bench/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

namespace adapterd::bench {
namespace {

using ::testing::HasSubstr;
using ::testing::internal::CaptureStderr;
using ::testing::internal::CaptureStdout;
using ::testing::internal::GetCapturedStderr;
using ::testing::internal::GetCapturedStdout;

Row RowOf(double ours_us, double reference_us, Bars bars) {
  Comparison comparison{Timing::Of(ours_us), Timing::Of(reference_us)};
  comparison.ours.repetitions = 7;
  return {"suite", "case", "m=1", "bf16", "memcpy", comparison, bars};
}

// What Finish says of one row.
std::string VerdictOn(const Row& row) {
  CaptureStdout();
  Report report(Report::Format::kTable, "machine");
  report.Add(row);
  GetCapturedStdout();
  CaptureStdout();
  report.Finish();
  return GetCapturedStdout();
}

bool AllHold(const Row& row) {
  CaptureStdout();
  Report report(Report::Format::kTable, "machine");
  report.Add(row);
  GetCapturedStdout();
  return report.all_hold();
}

TEST(ReportTest, BarHoldsUpToItsRatio) {
  EXPECT_THAT(VerdictOn(RowOf(20, 10, {2, {}})),
              HasSubstr("HOLDS: suite case m=1 bf16 is 2.00 x memcpy, at most 2.00 x\n"));
  EXPECT_THAT(VerdictOn(RowOf(25, 10, {2, {}})), HasSubstr("MISSED (missed by 0.50): "));
  EXPECT_TRUE(AllHold(RowOf(20, 10, {2, {}})));
  EXPECT_FALSE(AllHold(RowOf(25, 10, {2, {}})));
}

TEST(ReportTest, BarBelowOneIsASpeedUp) {
  EXPECT_THAT(
      VerdictOn(RowOf(1, 60, {1.0 / 50, {}})),
      HasSubstr("HOLDS: suite case m=1 bf16 is 60.00 x faster than memcpy, at least 50.00 x"));
  EXPECT_THAT(VerdictOn(RowOf(1, 40, {1.0 / 50, {}})),
              HasSubstr("MISSED (missed by 25 % of the time): "));
}

TEST(ReportTest, GoalFailsNothing) {
  const Row missed = RowOf(20, 10, {{}, 1.5});
  EXPECT_THAT(VerdictOn(missed), HasSubstr("REPORTED: suite case m=1 bf16 is 2.00 x memcpy; goal "
                                           "at most 1.50 x: missed by 0.50\n"));
  EXPECT_TRUE(AllHold(missed));
  EXPECT_THAT(VerdictOn(RowOf(12, 10, {2, 1.5})),
              HasSubstr("at most 2.00 x; goal at most 1.50 x: reached\n"));
}

TEST(ReportTest, CountsWhatWasMissed) {
  EXPECT_THAT(VerdictOn(RowOf(25, 10, {2, {}})), HasSubstr("1 rows with a bar or a goal, 1 bars"));
  EXPECT_THAT(VerdictOn(RowOf(25, 10, {})), HasSubstr("0 rows with a bar or a goal, 0 bars"));
}

nlohmann::json JsonOf(const Row& row) {
  CaptureStdout();
  Report(Report::Format::kJson, "machine").Add(row);
  return nlohmann::json::parse(GetCapturedStdout());
}

TEST(ReportTest, JsonHasOneObjectForARow) {
  const nlohmann::json json = JsonOf(RowOf(25, 10, {2, 1.5}));
  EXPECT_EQ(json["suite"], "suite");
  EXPECT_EQ(json["case"], "case");
  EXPECT_EQ(json["shape"], "m=1");
  EXPECT_EQ(json["dtype"], "bf16");
  EXPECT_EQ(json["ours_us"], 25);
  EXPECT_EQ(json["reference"], "memcpy");
  EXPECT_EQ(json["reference_us"], 10);
  EXPECT_EQ(json["ratio"], 2.5);
  EXPECT_EQ(json["repetitions"], 7);  // the reference has none: it was not measured
  EXPECT_EQ(json["bar"], 2);
  EXPECT_EQ(json["goal"], 1.5);
  EXPECT_EQ(json["holds"], false);
  EXPECT_EQ(json["machine"], "machine");
}

TEST(ReportTest, JsonHoldsIsNullWithoutABar) {
  EXPECT_TRUE(JsonOf(RowOf(25, 10, {{}, 1.5}))["holds"].is_null());
}

TEST(ReportTest, JsonKeepsVerdictsOffStandardOutput) {
  CaptureStdout();
  CaptureStderr();
  Report(Report::Format::kJson, "machine").Finish();
  EXPECT_EQ(GetCapturedStdout(), "");
  EXPECT_THAT(GetCapturedStderr(), HasSubstr("0 rows with a bar"));
}

}  // namespace
}  // namespace adapterd::bench
