// Every stored input, through the function that the fuzzer calls. What a fuzzer once found stays
// here; the other inputs lead to the deep checks, which must stay in reach.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/fuzz/target.h"
#include "tests/testing/temp_dir.h"

namespace adapterd::fuzz {
namespace {

std::vector<std::filesystem::path> InputsOf(const Target& target) {
  std::vector<std::filesystem::path> files;
  const auto folder = std::filesystem::path(ADAPTERD_REGRESSIONS) / target.name;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

struct StoredInput {
  const Target* target;
  std::filesystem::path file;
};

std::vector<StoredInput> AllInputs() {
  std::vector<StoredInput> inputs;
  for (const Target* target : AllTargets()) {
    for (const auto& file : InputsOf(*target)) inputs.push_back({target, file});
  }
  return inputs;
}

// "safetensors_hole"
std::string InputName(const ::testing::TestParamInfo<StoredInput>& info) {
  std::string name = fmt::format("{}_{}", info.param.target->name, info.param.file.stem().string());
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

class StoredInputTest : public ::testing::TestWithParam<StoredInput> {};

TEST_P(StoredInputTest, KeepsEveryProperty) {
  GetParam().target->run(ReadFile(GetParam().file));  // ends the process when it does not
}

INSTANTIATE_TEST_SUITE_P(Regressions, StoredInputTest, ::testing::ValuesIn(AllInputs()), InputName);

TEST(RegressionsTest, StoredInputsReachEveryDeepCheck) {
  for (const Target* target : AllTargets()) {
    for (const auto& file : InputsOf(*target)) target->run(ReadFile(file));
    for (const DeepCheck& check : target->deep_checks) {
      EXPECT_GT(TimesReached(*target, check.name), 0) << target->name << ": " << check.name;
    }
  }
}

}  // namespace
}  // namespace adapterd::fuzz
