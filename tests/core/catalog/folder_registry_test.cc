// A watched folder with the real registry and real files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/catalog/folder_watch.h"
#include "core/catalog/watched_source.h"
#include "core/registry/adapter_registry.h"
#include "tests/testing/peft_builder.h"
#include "tests/testing/pending.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;

namespace fs = std::filesystem;

constexpr auto kPatience = std::chrono::seconds(50);

class FolderRegistryTest : public ::testing::Test {
 protected:
  FolderRegistryTest() {
    fs::create_directory(temp_ / "watched");
    fs::create_directory(temp_ / "clients");
    clients_ = Open(temp_ / "clients");
    watched_ = std::make_shared<RenewableRoots>(Open(temp_ / "watched"));
    registry_ = std::make_unique<AdapterRegistry>(
        RegistryOptions(), kernels_,
        OpenWatchedAndOthers(watched_, clients_, OpenFromRoots(clients_, clients_)),
        MemoryBudget::Create(int64_t{1} << 30), io_pool_);
  }

  ~FolderRegistryTest() override { watch_.reset(); }

  static std::shared_ptr<const SourceRoots> Open(const std::string& path) {
    return std::make_shared<const SourceRoots>(*SourceRoots::Open({{"", path}}));
  }

  void Start() {
    FolderOptions options;
    options.path = temp_ / "watched";
    options.settle = absl::Milliseconds(20);
    watch_ = *FolderWatch::Start(options, ActionsOf(*registry_), watched_);
    watch_->AwaitFirstLoads();
  }

  static PeftBuilder Adapter(uint32_t seed) {
    PeftBuilder builder(seed);
    builder.Add("model.layers.0.self_attn.q_proj", 2, 8, 6);
    return builder;
  }

  absl::Status LoadAsClient(const std::string& name, const std::string& source, bool replace) {
    LoadRequest request;
    request.name = name;
    request.source.source = source;
    request.replace = replace;
    Pending<LoadResult> pending;
    registry_->Load(std::move(request), pending.Callback());
    return pending.Wait().status();
  }

  bool Becomes(const std::string& name, const std::function<bool(const AdapterSnapshot&)>& what) {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    for (;;) {
      const auto snapshot = registry_->Get(name);
      if (snapshot.ok() && what(*snapshot)) return true;
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::yield();
    }
  }

  const TempDir temp_;
  Kernels kernels_;
  ThreadPool io_pool_{"io", 2};
  std::shared_ptr<const SourceRoots> clients_;
  std::shared_ptr<RenewableRoots> watched_;
  std::unique_ptr<AdapterRegistry> registry_;
  std::unique_ptr<FolderWatch> watch_;
};

TEST_F(FolderRegistryTest, FoldersAreLoadedSwappedRepairedAndUnloaded) {
  Adapter(1).Write(temp_, "watched/a");
  temp_.Write("watched/b/adapter_config.json", "{");
  Start();
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot a, registry_->Get("a"));
  EXPECT_EQ(a.state, AdapterState::kReady);
  EXPECT_EQ(a.owner, AdapterOwner::kFolder);
  EXPECT_EQ(a.source, "a");
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot b, registry_->Get("b"));
  EXPECT_EQ(b.state, AdapterState::kFailed);
  EXPECT_THAT(b.error, HasReason(Reason::kSourceNotFound));
  EXPECT_THAT(b.error, HasMessage(HasSubstr("adapter_model.safetensors")));
  Adapter(2).Write(temp_, "watched/b");
  EXPECT_TRUE(Becomes("b", [](const auto& now) { return now.state == AdapterState::kReady; }));
  Adapter(3).Write(temp_, "new");
  fs::rename(temp_ / "watched/a", temp_ / "old");
  fs::rename(temp_ / "new", temp_ / "watched/a");
  EXPECT_TRUE(
      Becomes("a", [&](const auto& now) { return now.digest.revision != a.digest.revision; }));
  fs::remove_all(temp_ / "watched/a");
  fs::remove_all(temp_ / "watched/b");
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  // The name goes first, then the memory.
  while (registry_->totals().adapters + registry_->totals().memory_bytes > 0 &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_EQ(registry_->totals().adapters, 0);
  EXPECT_EQ(registry_->totals().memory_bytes, 0);
}

TEST_F(FolderRegistryTest, NoClientCanNameTheWatchedFolder) {
  Adapter(1).Write(temp_, "watched/a");
  Start();
  EXPECT_THAT(LoadAsClient("x", "a", false), HasReason(Reason::kSourceNotFound));
}

TEST_F(FolderRegistryTest, FolderAndClientsDoNotReplaceEachOthersAdapters) {
  Adapter(1).Write(temp_, "clients/mine");
  EXPECT_THAT(LoadAsClient("a", "mine", false), IsOk());
  Adapter(2).Write(temp_, "watched/a");
  Adapter(3).Write(temp_, "watched/b");
  Start();
  EXPECT_EQ(registry_->Get("a")->owner, AdapterOwner::kClients);
  EXPECT_EQ(registry_->Get("a")->source, "mine");
  EXPECT_THAT(LoadAsClient("b", "mine", true), HasReason(Reason::kAdapterExists));
}

}  // namespace
}  // namespace adapterd
