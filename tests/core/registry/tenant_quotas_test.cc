// What the adapters of one tenant may be and weigh together.
#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

using ::testing::AllOf;

class TenantQuotasTest : public RegistryTest {
 protected:
  TenantQuotasTest() {
    options_.tenant_quotas = {{"few", {2, kRoomy, 0}},
                              {"light", {100, 2 * Unit(), 0}},
                              {"slow", {100, kRoomy, 2}},
                              {"slower", {100, kRoomy, 1}}};
    Start(kRoomy);
  }

  LoadRequest Of(const std::string& tenant, const std::string& name) {
    sources_.Put(name, ContentOf(name));
    LoadRequest request = Request(name, name);
    if (!tenant.empty()) request.labels = {{"tenant", tenant}};
    return request;
  }

  absl::StatusOr<AdapterSnapshot> Move(const std::string& name, const std::string& tenant) {
    UpdateRequest request;
    request.name = name;
    request.labels = Labels{{"tenant", tenant}};
    return Update(request);
  }
};
INSTANTIATE_TEST_SUITE_P(Threads, TenantQuotasTest, ::testing::Values(1, 4), ThreadsName);

TEST_P(TenantQuotasTest, MoreAdaptersAreRefusedAndOthersAreNot) {
  ASSERT_THAT(Load(Of("few", "a")), IsOk());
  ASSERT_THAT(Load(Of("few", "b")), IsOk());
  EXPECT_THAT(Load(Of("few", "c")),
              AllOf(HasReason(Reason::kQuotaExceeded), HasErrorMetadata("tenant", "few"),
                    HasErrorMetadata("quota", "adapters"), HasErrorMetadata("adapter", "c")));
  EXPECT_EQ(Names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(budget_->used(), 2 * Unit());
  EXPECT_THAT(Load(Of("other", "c")), IsOk());
  EXPECT_THAT(Load(Of("", "d")), IsOk());
  ASSERT_THAT(Unload(UnloadOf("a")), IsOk());
  EXPECT_THAT(Load(Of("few", "e")), IsOk());
}

TEST_P(TenantQuotasTest, BytesCountInMemoryOrNot) {
  ASSERT_THAT(Load(Of("light", "a")), IsOk());
  ASSERT_THAT(Load(Of("light", "b")), IsOk());
  EvictAll();
  EXPECT_THAT(Load(Of("light", "c")),
              AllOf(HasReason(Reason::kQuotaExceeded), HasErrorMetadata("quota", "bytes")));
  LoadRequest replacing = Of("light", "c");
  replacing.name = "b";
  EXPECT_THAT(Load(Replacing(replacing)), IsOk());  // in the place of its own
}

TEST_P(TenantQuotasTest, LabelsAreNoWayAround) {
  ASSERT_THAT(Load(Of("few", "a")), IsOk());
  ASSERT_THAT(Load(Of("few", "b")), IsOk());
  ASSERT_THAT(Load(Of("", "c")), IsOk());
  EXPECT_THAT(Move("c", "few"), HasReason(Reason::kQuotaExceeded));
  EXPECT_TRUE(registry_->Get("c")->labels.empty());
  EXPECT_THAT(Load(Replacing(Of("few", "c"))), HasReason(Reason::kQuotaExceeded));
  EXPECT_TRUE(registry_->Get("c")->labels.empty());
  EXPECT_THAT(Move("a", "other"), IsOk());
  EXPECT_THAT(Move("c", "few"), IsOk());
  EXPECT_THAT(Move("c", "few"), IsOk());
}

TEST_P(TenantQuotasTest, LoadsAtTheSameTimeCount) {
  std::vector<Started> loads;
  for (int i = 0; i < 8; ++i) loads.push_back(StartLoad(Of("light", "x" + std::to_string(i))));
  int loaded = 0;
  for (Started& load : loads) loaded += load.pending.Wait().ok() ? 1 : 0;
  EXPECT_EQ(loaded, 2);
  EXPECT_EQ(Names().size(), 2U);
}

TEST_P(TenantQuotasTest, CallsAreCountedByTheTenantsOfTheirAdapters) {
  for (const char* tenant : {"few", "slow", "slower"}) {
    ASSERT_THAT(Load(Of(tenant, tenant)), IsOk());
  }
  const auto begin = TokenBucket::Clock::now();
  const auto charge = [&](const std::vector<std::string>& names, std::chrono::milliseconds after) {
    std::vector<AdapterRef> refs;
    for (const std::string& name : names) refs.emplace_back().name = name;
    return registry_->ChargeTenants(refs, begin + after);
  };
  using std::chrono::milliseconds;
  EXPECT_THAT(charge({"slow", "slower", "slow"}, milliseconds(0)), IsOk());  // one each
  EXPECT_THAT(charge({"slow", "slower"}, milliseconds(0)),
              AllOf(HasReason(Reason::kQuotaExceeded), HasErrorMetadata("tenant", "slower"),
                    HasErrorMetadata("expected", "at most 1")));
  EXPECT_THAT(charge({"slow"}, milliseconds(0)), IsOk());  // the refused one took nothing
  EXPECT_THAT(charge({"slow"}, milliseconds(499)), HasErrorMetadata("tenant", "slow"));
  EXPECT_THAT(charge({"slow"}, milliseconds(501)), IsOk());
  for (int i = 0; i < 100; ++i) {
    EXPECT_THAT(charge({"few", "unknown"}, milliseconds(501)), IsOk());
  }
}

}  // namespace
}  // namespace adapterd
