#include "core/formats/checkpoint_index.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "core/formats/safetensors.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using namespace std::string_literals;  // NOLINT(google-build-using-namespace): only operator""s

constexpr char kName[] = "m/model.safetensors.index.json";

TEST(CheckpointIndexTest, ReadsTensorsAndFiles) {
  ASSERT_OK_AND_ASSIGN(
      const CheckpointIndex index,
      ParseCheckpointIndex(
          R"( {"metadata": {"total_size": 12, "deep": [{"weight_map": null}, -1, 1.5, true]},
               "weight_map": {"b": "2.safetensors", "a": "1.safetensors", "c": "2.safetensors"},
               "version": 3} )",
          kName));
  EXPECT_THAT(index.files, ElementsAre("2.safetensors", "1.safetensors"));
  ASSERT_EQ(index.places.size(), 3u);
  EXPECT_EQ(index.places[0].tensor, "a");
  EXPECT_EQ(index.places[0].file, 1u);
  EXPECT_EQ(index.places[1].tensor, "b");
  EXPECT_EQ(index.places[1].file, 0u);
  EXPECT_EQ(index.places[2].tensor, "c");
  EXPECT_EQ(index.places[2].file, 0u);
}

struct BadIndex {
  const char* what;
  std::string json;
  const char* message;
};

TEST(CheckpointIndexTest, RefusesWhatIsNoIndex) {
  const std::string deep = R"({"metadata": )" + std::string(100, '[') + std::string(100, ']') + "}";
  const std::string long_name(kMaxTensorNameBytes + 1, 'n');
  const BadIndex cases[] = {
      {"nothing", "", "not valid JSON"},
      {"no JSON", "weights", "not valid JSON"},
      {"cut off", R"({"weight_map": {"a": "1")", "not valid JSON"},
      {"more after the end", R"({"weight_map": {"a": "1"}} x)", "not valid JSON"},
      {"a NUL byte", R"({"weight_map": {"a": "1"}})" + "\0"s, "NUL byte"},
      {"an array", R"(["a"])", "the index should be an object, found an array"},
      {"a number", "7", "the index should be an object, found a number"},
      {"no map", R"({"metadata": {}})", "no weight_map"},
      {"an empty map", R"({"weight_map": {}})", "empty weight_map"},
      {"two maps", R"({"weight_map": {"a": "1"}, "weight_map": {"b": "1"}})", "weight_map twice"},
      {"a list as map", R"({"weight_map": ["a"]})", "weight_map should be an object, found an arr"},
      {"null as map", R"({"weight_map": null})", "weight_map should be an object, found null"},
      {"a number as file", R"({"weight_map": {"a": 1}})", "\"a\": should be mapped to a file, fo"},
      {"an object as file", R"({"weight_map": {"a": {}}})", "mapped to a file, found an object"},
      {"null as file", R"({"weight_map": {"a": null}})", "mapped to a file, found null"},
      {"a tensor twice", R"({"weight_map": {"a": "1", "b": "1", "a": "1"}})",
       "\"a\": is mapped twice"},
      {"a long name", R"({"weight_map": {")" + long_name + R"(": "1"}})", "name of 4097 bytes"},
      {"nesting", deep, "nests deeper than 64 levels"},
  };
  for (const BadIndex& bad : cases) {
    const auto index = ParseCheckpointIndex(bad.json, kName);
    EXPECT_THAT(index, HasReason(Reason::kMalformedTensorFile)) << bad.what;
    EXPECT_THAT(index, HasMessage(HasSubstr(bad.message))) << bad.what;
    EXPECT_THAT(index, HasErrorMetadata("file", kName)) << bad.what;
  }
}

std::string IndexWithFiles(size_t count) {
  std::string json = R"({"weight_map": {)";
  for (size_t i = 0; i < count; ++i) {
    json += fmt::format("{}\"{}\":\"f{}\"", i == 0 ? "" : ",", i, i);
  }
  return json + "}}";
}

TEST(CheckpointIndexTest, CountsFiles) {
  EXPECT_THAT(ParseCheckpointIndex(IndexWithFiles(kMaxCheckpointShards), kName), IsOk());
  const auto index = ParseCheckpointIndex(IndexWithFiles(kMaxCheckpointShards + 1), kName);
  EXPECT_THAT(index, HasReason(Reason::kMalformedTensorFile));
  EXPECT_THAT(index, HasMessage(HasSubstr("names more than 512 files")));
}

TEST(CheckpointIndexTest, CountsTensors) {
  std::string json = R"({"weight_map": {)";
  for (size_t i = 0; i <= kMaxCheckpointTensors; ++i) json += fmt::format("\"{}\":\"f\",", i);
  json.back() = '}';
  const auto index = ParseCheckpointIndex(json + "}", kName);
  EXPECT_THAT(index, HasReason(Reason::kMalformedTensorFile));
  EXPECT_THAT(index, HasMessage(HasSubstr("maps more than 1000000 tensors")));
}

}  // namespace
}  // namespace adapterd
