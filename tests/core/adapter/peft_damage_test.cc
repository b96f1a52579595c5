// Random damage to a real adapter: a reason or a whole adapter, never a crash, and never the
// revision of the original over other content.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "tests/core/adapter/adapter_folder.h"
#include "tests/testing/module_collector.h"

namespace adapterd {
namespace {

TEST(PeftDamageTest, DamagedFilesAreRefusedOrReadWhole) {
  const std::filesystem::path original =
      std::filesystem::path(ADAPTERD_FIXTURES) / "peft/cases/llama-qv";
  ThreadPool pool("io", 2);
  ProblemList none;
  const auto whole = OpenerAt(original.parent_path())({"llama-qv", ""}, none);
  ModuleCollector intact;
  ASSERT_OK_AND_ASSIGN(const std::string intact_revision, whole->Read(pool, {}, &intact, none));
  std::mt19937 random(20230901);
  TempDir dir;
  int loaded = 0;
  for (int round = 0; round < 400; ++round) {
    std::string config = ReadFile(original / "adapter_config.json");
    std::string weights = ReadFile(original / "adapter_model.safetensors");
    std::string& victim = round % 2 == 0 ? config : weights;
    const size_t damage = std::min<size_t>(victim.size(), 1600);  // config or header
    for (int i = 0; i <= round % 3; ++i) {
      victim[random() % damage] = round % 5 == 0 ? static_cast<char>(random() % 256)
                                                 : "0123456789{}[],:\"- ntfaQq._"[random() % 28];
    }
    dir.Write("a/adapter_config.json", config);
    dir.Write("a/adapter_model.safetensors", weights);
    ProblemList problems;
    const auto reader = OpenerAt(dir.path())({"a", ""}, problems);
    ASSERT_TRUE(reader != nullptr || problems.has_errors());
    if (problems.has_errors()) continue;
    ModuleCollector modules;
    const auto revision = reader->Read(pool, {}, &modules, problems);
    if (!revision.ok()) continue;
    ++loaded;
    ASSERT_EQ(modules.size(), reader->manifest()->modules.size());
    if (*revision != intact_revision) continue;
    for (size_t i = 0; i < intact.size(); ++i) {
      EXPECT_EQ(reader->manifest()->modules[i].scale, whole->manifest()->modules[i].scale);
      EXPECT_EQ(FloatsOf(modules.at(i).lora_b), FloatsOf(intact.at(i).lora_b));
    }
  }
  EXPECT_GT(loaded, 0);
  EXPECT_LT(loaded, 400);
}

}  // namespace
}  // namespace adapterd
