// ListAdapters: filters, pages, totals.
#include "service/adapter_listing.h"

#include <grpcpp/grpcpp.h>

#include "tests/service/projection_fixture.h"
#include "tests/testing/fake_sources.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

AdapterSnapshot Snapshot(const std::string& name, const std::string& base_model = "base",
                         const Labels& labels = {}) {
  AdapterSnapshot snapshot;
  snapshot.name = name;
  snapshot.state = AdapterState::kReady;
  snapshot.labels = labels;
  snapshot.memory_bytes = 10;
  FakeContent content;
  content.base_model = base_model;
  snapshot.manifest = ManifestOf(content);
  return snapshot;
}

class AdapterListingTest : public ::testing::Test {
 protected:
  absl::StatusOr<v1::ListAdaptersResponse> List(const v1::ListAdaptersRequest& request) const {
    v1::ListAdaptersResponse response;
    const absl::Status status = FillListing(adapters_, 1000, request, response);
    if (!status.ok()) return status;
    return response;
  }

  static std::vector<std::string> NamesOf(const v1::ListAdaptersResponse& response) {
    std::vector<std::string> names;
    for (const v1::Adapter& adapter : response.adapters()) names.push_back(adapter.name());
    return names;
  }

  // Names on all pages, and the number of pages.
  std::pair<std::vector<std::string>, int> Walk(v1::ListAdaptersRequest request) const {
    std::vector<std::string> names;
    for (int pages = 1;; ++pages) {
      const auto response = List(request);
      EXPECT_THAT(response, IsOk());
      for (const std::string& name : NamesOf(*response)) names.push_back(name);
      if (response->next_page_token().empty()) return {names, pages};
      request.set_page_token(response->next_page_token());
    }
  }

  void Number(int count) {
    for (int i = 0; i < count; ++i) {
      adapters_.push_back(Snapshot("a" + std::to_string(10000 + i)));
    }
  }

  std::vector<AdapterSnapshot> adapters_;
};

TEST_F(AdapterListingTest, WithoutFiltersEverythingIsListed) {
  adapters_ = {Snapshot("a"), Snapshot("b")};
  adapters_[1].state = AdapterState::kLoading;
  adapters_[1].manifest = nullptr;
  adapters_[1].memory_bytes = 0;
  ASSERT_OK_AND_ASSIGN(const v1::ListAdaptersResponse response, List({}));
  EXPECT_THAT(NamesOf(response), ElementsAre("a", "b"));
  EXPECT_EQ(response.adapters(0).state(), v1::ADAPTER_STATE_READY);
  EXPECT_EQ(response.adapters(1).state(), v1::ADAPTER_STATE_LOADING);
  EXPECT_EQ(response.total_size(), 2);
  EXPECT_EQ(response.next_page_token(), "");
  EXPECT_EQ(response.summary().adapter_count(), 2);
  EXPECT_EQ(response.summary().resident_count(), 1);
  EXPECT_EQ(response.summary().memory_bytes(), 10);
  EXPECT_EQ(response.summary().memory_budget_bytes(), 1000);
  EXPECT_EQ(response.summary().parameter_count(), adapters_[0].manifest->parameter_count());
}

TEST_F(AdapterListingTest, NothingLoadedIsAnEmptyPage) {
  ASSERT_OK_AND_ASSIGN(const v1::ListAdaptersResponse response, List({}));
  EXPECT_THAT(response.adapters(), IsEmpty());
  EXPECT_EQ(response.total_size(), 0);
  EXPECT_EQ(response.next_page_token(), "");
}

TEST_F(AdapterListingTest, AllFiltersThatAreSetMustMatch) {
  adapters_ = {Snapshot("a1", "llama", {{"team", "red"}, {"env", "prod"}}),
               Snapshot("a2", "llama", {{"team", "blue"}}), Snapshot("b1", "qwen"),
               Snapshot("b2", "llama", {{"team", "red"}})};
  adapters_[3].state = AdapterState::kLoading;
  const auto names = [&](const std::function<void(v1::ListAdaptersRequest&)>& filter) {
    v1::ListAdaptersRequest request;
    filter(request);
    const auto response = List(request);
    EXPECT_THAT(response, IsOk());
    EXPECT_EQ(response->total_size(), response->adapters_size());
    EXPECT_EQ(response->summary().adapter_count(), 4);
    return NamesOf(*response);
  };
  using R = v1::ListAdaptersRequest;
  EXPECT_THAT(names([](R& r) { r.set_base_model("llama"); }), ElementsAre("a1", "a2", "b2"));
  EXPECT_THAT(names([](R& r) { r.set_base_model("lla"); }), IsEmpty());
  EXPECT_THAT(names([](R& r) { r.set_name_prefix("b"); }), ElementsAre("b1", "b2"));
  EXPECT_THAT(names([](R& r) { r.set_state(v1::ADAPTER_STATE_LOADING); }), ElementsAre("b2"));
  EXPECT_THAT(names([](R& r) { r.set_state(v1::ADAPTER_STATE_FAILED); }), IsEmpty());
  EXPECT_THAT(names([](R& r) { (*r.mutable_labels())["team"] = "red"; }), ElementsAre("a1", "b2"));
  EXPECT_THAT(names([](R& r) {
                (*r.mutable_labels())["team"] = "red";
                (*r.mutable_labels())["env"] = "prod";
              }),
              ElementsAre("a1"));
  EXPECT_THAT(names([](R& r) {
                r.set_name_prefix("b");
                r.set_base_model("llama");
                r.set_state(v1::ADAPTER_STATE_READY);
              }),
              IsEmpty());
}

TEST_F(AdapterListingTest, PagesTogetherHoldEverythingOnce) {
  Number(25);
  std::vector<std::string> all;
  for (const AdapterSnapshot& adapter : adapters_) all.push_back(adapter.name);
  for (const int page_size : {1, 7, 24, 25, 26}) {
    v1::ListAdaptersRequest request;
    request.set_page_size(page_size);
    const auto [names, pages] = Walk(request);
    EXPECT_EQ(names, all);
    EXPECT_EQ(pages, (25 + page_size - 1) / page_size) << page_size;
  }
}

TEST_F(AdapterListingTest, PageSizesHaveADefaultAndALimit) {
  Number(1500);
  v1::ListAdaptersRequest request;
  EXPECT_THAT(List(request)->adapters(), SizeIs(100));
  EXPECT_EQ(List(request)->total_size(), 1500);
  request.set_page_size(5000);
  EXPECT_THAT(List(request)->adapters(), SizeIs(1000));
  request.set_page_size(-1);
  EXPECT_THAT(List(request), HasReason(Reason::kInvalidField));
}

TEST_F(AdapterListingTest, APageEndsAtItsByteLimit) {
  FakeContent content;
  content.modules.clear();
  for (int i = 0; i < 4000; ++i) {
    content.modules.push_back({"model.layers." + std::to_string(i) + ".self_attn.q_proj"});
  }
  for (int i = 0; i < 6; ++i) {
    adapters_.push_back(Snapshot("a" + std::to_string(i)));
    adapters_.back().manifest = ManifestOf(content);
  }
  v1::ListAdaptersRequest request;
  request.set_view(v1::ADAPTER_VIEW_FULL);
  const auto first = List(request);
  ASSERT_THAT(first, IsOk());
  EXPECT_GE(first->ByteSizeLong(), 2'000'000u);
  EXPECT_LT(first->adapters_size(), 6);
  EXPECT_NE(first->next_page_token(), "");
  EXPECT_THAT(Walk(request).first, SizeIs(6));
  request.set_view(v1::ADAPTER_VIEW_BASIC);
  EXPECT_EQ(Walk(request).second, 1);
}

TEST_F(AdapterListingTest, PagingStaysRightWhileAdaptersComeAndGo) {
  adapters_ = {Snapshot("b"), Snapshot("d"), Snapshot("f"), Snapshot("h")};
  v1::ListAdaptersRequest request;
  request.set_page_size(2);
  ASSERT_OK_AND_ASSIGN(const v1::ListAdaptersResponse first, List(request));
  EXPECT_THAT(NamesOf(first), ElementsAre("b", "d"));
  // The last one of the page goes, one comes before it, one after it.
  adapters_ = {Snapshot("a"), Snapshot("b"), Snapshot("e"), Snapshot("f"), Snapshot("h")};
  request.set_page_token(first.next_page_token());
  ASSERT_OK_AND_ASSIGN(const v1::ListAdaptersResponse second, List(request));
  EXPECT_THAT(NamesOf(second), ElementsAre("e", "f"));
}

TEST_F(AdapterListingTest, ATokenIsGoodForItsFiltersAlone) {
  Number(10);
  v1::ListAdaptersRequest request;
  request.set_page_size(2);
  request.set_name_prefix("a");
  (*request.mutable_labels())["k"] = "";
  for (AdapterSnapshot& adapter : adapters_) adapter.labels = {{"k", ""}};
  ASSERT_OK_AND_ASSIGN(const v1::ListAdaptersResponse first, List(request));
  ASSERT_NE(first.next_page_token(), "");
  request.set_page_token(first.next_page_token());
  request.set_page_size(3);  // sizes and views may change on the way
  request.set_view(v1::ADAPTER_VIEW_FULL);
  EXPECT_THAT(List(request), IsOk());
  v1::ListAdaptersRequest other = request;
  other.set_name_prefix("a1");
  EXPECT_THAT(List(other), HasReason(Reason::kInvalidField));
  other = request;
  other.set_state(v1::ADAPTER_STATE_READY);
  EXPECT_THAT(List(other), HasReason(Reason::kInvalidField));
  other = request;
  other.mutable_labels()->clear();
  EXPECT_THAT(List(other), HasReason(Reason::kInvalidField));
}

TEST_F(AdapterListingTest, ForgedTokensAreRefused) {
  Number(10);
  v1::ListAdaptersRequest request;
  request.set_page_size(2);
  const std::string token = List(request)->next_page_token();
  std::vector<std::string> forged = {
      "a", "0", ".", "a10001", token + "x", token.substr(0, token.size() - 1), token.substr(1)};
  for (size_t i = 0; i < token.size(); ++i) {
    forged.push_back(token);
    forged.back()[i] = token[i] == 'x' ? 'y' : 'x';
  }
  for (const std::string& one : forged) {
    request.set_page_token(one);
    EXPECT_THAT(List(request), HasReason(Reason::kInvalidField)) << one;
    EXPECT_THAT(List(request).status(), HasErrorMetadata("field", "page_token")) << one;
  }
}

TEST_F(AdapterListingTest, AnUnknownStateIsRefused) {
  v1::ListAdaptersRequest request;
  request.set_state(static_cast<v1::AdapterState>(99));
  EXPECT_THAT(List(request), HasReason(Reason::kInvalidField));
}

class ListAdaptersTest : public ProjectionFixture {};

TEST_F(ListAdaptersTest, TheServiceListsWhatIsLoaded) {
  for (const char* name : {"c", "a", "b"}) LoadAs(name, PeftBuilder(1).Add(kQ0, 2, kIn, kOut));
  v1::ListAdaptersRequest request;
  request.set_page_size(2);
  request.set_view(v1::ADAPTER_VIEW_FULL);
  const auto first = server_.List(request);
  ASSERT_THAT(first.status, IsRpcOk());
  ASSERT_EQ(first->adapters_size(), 2);
  EXPECT_EQ(first->adapters(0).name(), "a");
  EXPECT_EQ(first->adapters(1).name(), "b");
  EXPECT_EQ(first->adapters(0).modules_size(), 1);
  EXPECT_EQ(first->total_size(), 3);
  EXPECT_EQ(first->summary().memory_bytes(), server_.used_bytes());
  EXPECT_EQ(first->summary().memory_budget_bytes(), server_.registry().budget().limit());
  request.set_page_token(first->next_page_token());
  const auto second = server_.List(request);
  ASSERT_EQ(second->adapters_size(), 1);
  EXPECT_EQ(second->adapters(0).name(), "c");
  EXPECT_EQ(second->next_page_token(), "");
  request.set_page_token("forged");
  EXPECT_THAT(server_.List(request).status, IsRpcError(Reason::kInvalidField));
}

}  // namespace
}  // namespace adapterd
