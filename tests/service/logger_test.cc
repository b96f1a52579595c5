#include "service/logger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "absl/strings/str_split.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;
using ::testing::Not;
using ::testing::SizeIs;

// What `log` writes to standard error, by lines.
template <typename Log>
std::vector<std::string> LinesOf(Log log) {
  ::testing::internal::CaptureStderr();
  log();
  const std::string text = ::testing::internal::GetCapturedStderr();
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  EXPECT_EQ(lines.back(), "");  // every line ends
  lines.pop_back();
  return lines;
}

// Text that tries to end the line, to start another, and to look like other fields.
const char* const kHostile[] = {
    "x\n2030-01-01T00:00:00Z error  forged",
    "x\r\nforged",
    "a\" level=error b=\"",
    "a\",\"level\":\"error",
    "back\\slash\\",
    "\x1b[31mred",
    "nul\x01\x1f",
    "broken \xff\xfe utf8",
    "key=value",
    "",
};

TEST(LoggerTest, TextLinesHaveTimeLevelEventAndFields) {
  Logger logger(LogFormat::kText, LogLevel::kInfo);
  const auto lines = LinesOf([&] {
    logger.Log(LogLevel::kInfo, "rpc",
               {{"method", "Load"}, {"bytes", int64_t{12}}, {"ms", 1.5}, {"text", "two words"}});
  });
  ASSERT_THAT(lines, SizeIs(1));
  EXPECT_THAT(lines[0],
              MatchesRegex("20[0-9][0-9]-[0-9-]+T[0-9:]+\\.[0-9]+Z info    rpc method=Load "
                           "bytes=12 ms=1.5 text=\"two words\""));
}

TEST(LoggerTest, JsonLinesAreObjectsWithTheSame) {
  Logger logger(LogFormat::kJson, LogLevel::kInfo);
  const auto lines = LinesOf([&] {
    logger.Log(LogLevel::kWarning, "rpc",
               {{"method", "Load"}, {"bytes", int64_t{12}}, {"ms", 1.5}});
  });
  ASSERT_THAT(lines, SizeIs(1));
  const nlohmann::json line = nlohmann::json::parse(lines[0]);
  EXPECT_EQ(line.at("level"), "warning");
  EXPECT_EQ(line.at("event"), "rpc");
  EXPECT_EQ(line.at("method"), "Load");
  EXPECT_EQ(line.at("bytes"), 12);
  EXPECT_EQ(line.at("ms"), 1.5);
  EXPECT_THAT(line.at("time").get<std::string>(), HasSubstr("T"));
}

TEST(LoggerTest, NoValueForgesALineOrAField) {
  for (const std::string value : kHostile) {
    SCOPED_TRACE(value);
    Logger text(LogFormat::kText, LogLevel::kInfo);
    const auto lines = LinesOf([&] {
      text.Log(LogLevel::kInfo, "e", {{"v", value}, {"after", "1"}});
    });
    ASSERT_THAT(lines, SizeIs(1));
    EXPECT_THAT(lines[0], ::testing::EndsWith(" after=1"));
    EXPECT_THAT(lines[0], HasSubstr(" v=\""));  // in quotes, whatever is in it
    for (const char c : lines[0]) EXPECT_GE(static_cast<unsigned char>(c), 0x20);
    // What is between the quotes reads back as JSON, so that no quote inside ends them.
    const size_t begin = lines[0].find(" v=") + 3;
    const std::string quoted =
        lines[0].substr(begin, lines[0].size() - std::string(" after=1").size() - begin);
    EXPECT_NO_THROW({ EXPECT_TRUE(nlohmann::json::parse(quoted).is_string()); }) << quoted;

    Logger json(LogFormat::kJson, LogLevel::kInfo);
    const auto objects = LinesOf([&] { json.Log(LogLevel::kInfo, "e", {{"v", value}}); });
    ASSERT_THAT(objects, SizeIs(1));
    const nlohmann::json object = nlohmann::json::parse(objects[0]);
    EXPECT_EQ(object.at("level"), "info");
    EXPECT_EQ(object.size(), 4u);
    if (value.find('\xff') == std::string::npos) {
      EXPECT_EQ(object.at("v"), value);
    }
  }
}

TEST(LoggerTest, LevelsBelowTheLimitAreNotWritten) {
  const LogLevel levels[] = {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning,
                             LogLevel::kError};
  for (size_t limit = 0; limit < std::size(levels); ++limit) {
    Logger logger(LogFormat::kText, levels[limit]);
    const auto lines = LinesOf([&] {
      for (const LogLevel level : levels) logger.Log(level, "e");
    });
    EXPECT_THAT(lines, SizeIs(std::size(levels) - limit));
    EXPECT_TRUE(logger.Enabled(levels[limit]));
  }
  Logger off(LogFormat::kText, LogLevel::kOff);
  EXPECT_THAT(LinesOf([&] { off.Log(LogLevel::kError, "e"); }), IsEmpty());
}

TEST(LoggerTest, LinesOfManyThreadsNeverMix) {
  Logger logger(LogFormat::kJson, LogLevel::kInfo);
  const auto lines = LinesOf([&] {
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&logger, t] {
        for (int i = 0; i < 100; ++i) {
          logger.Log(LogLevel::kInfo, "e",
                     {{"t", int64_t{t}}, {"text", std::string(200, static_cast<char>('a' + t))}});
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
  ASSERT_THAT(lines, SizeIs(400));
  for (const std::string& line : lines) {
    const nlohmann::json object = nlohmann::json::parse(line);
    const std::string text = object.at("text");
    EXPECT_EQ(text, std::string(200, static_cast<char>('a' + object.at("t").get<int>())));
  }
}

}  // namespace
}  // namespace adapterd
