// ListAdapters: filters, pages, totals, and where a watch may start.
#include "service/adapter_listing.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <functional>

#include "service/page_token.h"
#include "tests/testing/fake_sources.h"
#include "tests/testing/rpc_matchers.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/test_server.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Request = v1::ListAdaptersRequest;

TEST(ReadListingTest, FiltersBecomeTheQuery) {
  Request request;
  request.set_base_model("llama");
  request.set_name_prefix("a");
  request.set_state(v1::ADAPTER_STATE_EVICTED);
  (*request.mutable_labels())["team"] = "red";
  ASSERT_OK_AND_ASSIGN(const ListingPage page, ReadListing(request));
  EXPECT_EQ(page.query.after, "");
  EXPECT_EQ(page.query.base_model, "llama");
  EXPECT_EQ(page.query.name_prefix, "a");
  EXPECT_EQ(page.query.state, AdapterState::kEvicted);
  EXPECT_EQ(page.query.labels, Labels({{"team", "red"}}));
  EXPECT_FALSE(page.first_sequence);
  EXPECT_EQ(ReadListing({})->query.state, std::nullopt);
}

TEST(ReadListingTest, PageSizesHaveADefaultAndALimit) {
  Request request;
  EXPECT_EQ(ReadListing(request)->query.limit, 100u);
  for (const int64_t size : {1, 7, 1000}) {
    request.set_page_size(size);
    EXPECT_EQ(ReadListing(request)->query.limit, static_cast<size_t>(size));
  }
  request.set_page_size(std::numeric_limits<int64_t>::max());
  EXPECT_EQ(ReadListing(request)->query.limit, 1000u);
  for (const int64_t size : {int64_t{-1}, std::numeric_limits<int64_t>::min()}) {
    request.set_page_size(size);
    EXPECT_THAT(ReadListing(request), HasReason(Reason::kInvalidField));
    EXPECT_THAT(ReadListing(request).status(), HasErrorMetadata("field", "page_size"));
  }
}

TEST(ReadListingTest, AnUnknownStateIsRefused) {
  Request request;
  request.set_state(static_cast<v1::AdapterState>(99));
  EXPECT_THAT(ReadListing(request), HasReason(Reason::kInvalidField));
  EXPECT_THAT(ReadListing(request).status(), HasErrorMetadata("field", "state"));
}

TEST(ReadListingTest, ATokenIsGoodForItsFiltersAlone) {
  Request request;
  request.set_name_prefix("a");
  (*request.mutable_labels())["k"] = "";
  ASSERT_OK_AND_ASSIGN(const ListingPage first, ReadListing(request));
  request.set_page_token(MakePageToken({"a5", 77}, first.filters));
  request.set_page_size(3);  // sizes and views may change on the way
  request.set_view(v1::ADAPTER_VIEW_FULL);
  ASSERT_OK_AND_ASSIGN(const ListingPage second, ReadListing(request));
  EXPECT_EQ(second.query.after, "a5");
  EXPECT_EQ(second.first_sequence, 77);
  const std::function<void(Request&)> others[] = {
      [](Request& r) { r.set_name_prefix("a1"); },
      [](Request& r) { r.set_base_model("b"); },
      [](Request& r) { r.set_state(v1::ADAPTER_STATE_READY); },
      [](Request& r) { r.clear_labels(); },
      [](Request& r) { (*r.mutable_labels())["k"] = "v"; },
  };
  for (const auto& change : others) {
    Request other = request;
    change(other);
    EXPECT_THAT(ReadListing(other), HasReason(Reason::kInvalidField)) << other.DebugString();
  }
}

TEST(ReadListingTest, ForgedTokensAreRefused) {
  const std::string token = MakePageToken({"a10001", 5}, ReadListing({})->filters);
  std::vector<std::string> forged = {
      "a", "0", ".", "a10001", token + "x", token.substr(0, token.size() - 1), token.substr(1)};
  for (size_t i = 0; i < token.size(); ++i) {
    forged.push_back(token);
    forged.back()[i] = token[i] == 'x' ? 'y' : 'x';
  }
  Request request;
  for (const std::string& one : forged) {
    request.set_page_token(one);
    EXPECT_THAT(ReadListing(request), HasReason(Reason::kInvalidField)) << one;
    EXPECT_THAT(ReadListing(request).status(), HasErrorMetadata("field", "page_token")) << one;
  }
}

TEST(FillListingTest, SequenceTotalsAndTheNextToken) {
  ListingPage page;
  ListPage listed;
  listed.sequence = 40;
  listed.total = 9;
  listed.more = true;
  listed.adapters.resize(2);
  listed.adapters[0].name = "a";
  listed.adapters[1].name = "b";
  const RegistryTotals totals{7, 5, 1000, 2000, 30};
  v1::ListAdaptersResponse response;
  FillListing(page, listed, totals, v1::ADAPTER_VIEW_BASIC, response);
  EXPECT_EQ(response.sequence(), 40);
  EXPECT_EQ(response.total_size(), 9);
  EXPECT_EQ(response.summary().adapter_count(), 7);
  EXPECT_EQ(response.summary().resident_count(), 5);
  EXPECT_EQ(response.summary().memory_bytes(), 1000);
  EXPECT_EQ(response.summary().memory_budget_bytes(), 2000);
  EXPECT_EQ(response.summary().parameter_count(), 30);
  EXPECT_EQ(ReadPageToken(response.next_page_token(), "").value_or(PagePosition()),
            PagePosition({"b", 40}));
  // A later page tells where the first one began, however far the registry has come.
  page.first_sequence = 33;
  listed.more = false;
  v1::ListAdaptersResponse last;
  FillListing(page, listed, totals, v1::ADAPTER_VIEW_BASIC, last);
  EXPECT_EQ(last.sequence(), 33);
  EXPECT_EQ(last.next_page_token(), "");
}

TEST(FillListingTest, APageEndsBelowItsByteLimitButHasOneAdapter) {
  ListPage listed;
  for (const char* name : {"a", "b", "c", "d"}) {
    listed.adapters.emplace_back().name = name;
    listed.adapters.back().warnings.assign(700, std::string(1000, 'w'));
  }
  const auto fill = [&] {
    v1::ListAdaptersResponse response;
    FillListing({}, listed, {}, v1::ADAPTER_VIEW_BASIC, response);
    return response;
  };
  EXPECT_THAT(fill().adapters(), SizeIs(2));
  EXPECT_LE(fill().ByteSizeLong(), 2'000'000u + 200);  // besides the adapters: token and summary
  EXPECT_EQ(ReadPageToken(fill().next_page_token(), "").value_or(PagePosition()).last_name, "b");
  listed.adapters[0].warnings.assign(3000, std::string(1000, 'w'));
  EXPECT_THAT(fill().adapters(), SizeIs(1));
  listed.adapters.resize(1);
  EXPECT_THAT(fill().adapters(), SizeIs(1));
  EXPECT_EQ(fill().next_page_token(), "");
}

class ListAdaptersTest : public ::testing::Test {
 protected:
  ~ListAdaptersTest() override { sources_.OpenAllGates(); }

  static TestServerOptions OptionsFor(FakeSources& sources) {
    TestServerOptions options;
    options.opener = sources.opener();
    return options;
  }

  // Each has content of its own.
  void Load(const std::string& name, const std::string& base_model = "base",
            const Labels& labels = {}, std::vector<FakeModule> modules = {{}}) {
    FakeContent content;
    content.text = name;
    content.base_model = base_model;
    content.modules = std::move(modules);
    sources_.Put(name, content);
    v1::LoadAdapterRequest request;
    request.set_name(name);
    request.set_source(name);
    request.mutable_labels()->insert(labels.begin(), labels.end());
    ASSERT_THAT(server_.Load(request).status, IsRpcOk());
  }

  v1::ListAdaptersResponse List(const Request& request) {
    const auto reply = server_.List(request);
    EXPECT_THAT(reply.status, IsRpcOk());
    return reply.response;
  }

  static std::vector<std::string> NamesOf(const v1::ListAdaptersResponse& response) {
    std::vector<std::string> names;
    for (const v1::Adapter& adapter : response.adapters()) names.push_back(adapter.name());
    return names;
  }

  // Names on all pages, and the number of pages.
  std::pair<std::vector<std::string>, int> Walk(Request request) {
    std::vector<std::string> names;
    for (int pages = 1;; ++pages) {
      const v1::ListAdaptersResponse response = List(request);
      for (const std::string& name : NamesOf(response)) names.push_back(name);
      if (response.next_page_token().empty()) return {names, pages};
      request.set_page_token(response.next_page_token());
    }
  }

  FakeSources sources_;
  TestServer server_{OptionsFor(sources_)};
};

TEST_F(ListAdaptersTest, NothingLoadedIsAnEmptyPage) {
  const v1::ListAdaptersResponse response = List({});
  EXPECT_THAT(response.adapters(), IsEmpty());
  EXPECT_EQ(response.total_size(), 0);
  EXPECT_EQ(response.next_page_token(), "");
  EXPECT_EQ(response.sequence(), server_.registry().events().last_sequence());
}

TEST_F(ListAdaptersTest, AllFiltersThatAreSetMustMatch) {
  Load("a1", "llama", {{"team", "red"}, {"env", "prod"}});
  Load("a2", "llama", {{"team", "blue"}});
  Load("b1", "qwen");
  Load("b2", "llama", {{"team", "red"}});
  const auto names = [&](const std::function<void(Request&)>& filter) {
    Request request;
    filter(request);
    const v1::ListAdaptersResponse response = List(request);
    EXPECT_EQ(response.total_size(), response.adapters_size());
    EXPECT_EQ(response.summary().adapter_count(), 4);
    return NamesOf(response);
  };
  EXPECT_THAT(names([](Request& r) {}), ElementsAre("a1", "a2", "b1", "b2"));
  EXPECT_THAT(names([](Request& r) { r.set_base_model("llama"); }), ElementsAre("a1", "a2", "b2"));
  EXPECT_THAT(names([](Request& r) { r.set_base_model("lla"); }), IsEmpty());
  EXPECT_THAT(names([](Request& r) { r.set_name_prefix("b"); }), ElementsAre("b1", "b2"));
  EXPECT_THAT(names([](Request& r) { r.set_state(v1::ADAPTER_STATE_FAILED); }), IsEmpty());
  EXPECT_THAT(names([](Request& r) { (*r.mutable_labels())["team"] = "red"; }),
              ElementsAre("a1", "b2"));
  EXPECT_THAT(names([](Request& r) {
                (*r.mutable_labels())["team"] = "red";
                (*r.mutable_labels())["env"] = "prod";
              }),
              ElementsAre("a1"));
  EXPECT_THAT(names([](Request& r) {
                r.set_name_prefix("b");
                r.set_base_model("llama");
                r.set_state(v1::ADAPTER_STATE_READY);
              }),
              ElementsAre("b2"));
}

TEST_F(ListAdaptersTest, PagesTogetherHoldEverythingOnce) {
  std::vector<std::string> all;
  for (int i = 10; i < 35; ++i) all.push_back(fmt::format("a{}", i));
  for (const std::string& name : all) Load(name);
  for (const int page_size : {1, 7, 24, 25, 26}) {
    Request request;
    request.set_page_size(page_size);
    const auto [names, pages] = Walk(request);
    EXPECT_EQ(names, all);
    EXPECT_EQ(pages, (25 + page_size - 1) / page_size) << page_size;
  }
}

TEST_F(ListAdaptersTest, PagesOfFullAdaptersEndAtTheirBytes) {
  std::vector<FakeModule> modules;
  for (int i = 0; i < 4000; ++i) {
    modules.push_back({"model.layers." + std::to_string(i) + ".self_attn.q_proj"});
  }
  for (int i = 0; i < 6; ++i) Load(fmt::format("a{}", i), "base", {}, modules);
  Request request;
  request.set_view(v1::ADAPTER_VIEW_FULL);
  const v1::ListAdaptersResponse first = List(request);
  EXPECT_LT(first.adapters_size(), 6);
  EXPECT_LE(first.ByteSizeLong(), 2'000'200u);
  EXPECT_EQ(first.total_size(), 6);
  EXPECT_THAT(Walk(request).first, SizeIs(6));
  request.set_view(v1::ADAPTER_VIEW_BASIC);
  EXPECT_EQ(Walk(request).second, 1);
}

TEST_F(ListAdaptersTest, PagingStaysRightWhileAdaptersComeAndGo) {
  for (const char* name : {"b", "d", "f", "h"}) Load(name);
  Request request;
  request.set_page_size(2);
  const v1::ListAdaptersResponse first = List(request);
  EXPECT_THAT(NamesOf(first), ElementsAre("b", "d"));
  // The last one of the page goes, one comes before it, one after it.
  ASSERT_THAT(server_.Unload("d").status, IsRpcOk());
  Load("a");
  Load("e");
  request.set_page_token(first.next_page_token());
  const v1::ListAdaptersResponse second = List(request);
  EXPECT_THAT(NamesOf(second), ElementsAre("e", "f"));
  EXPECT_EQ(second.sequence(), first.sequence());
  EXPECT_EQ(server_.registry().events().last_sequence(), first.sequence() + 3);
  request.set_page_token(second.next_page_token());
  EXPECT_EQ(List(request).sequence(), first.sequence());
  request.clear_page_token();
  EXPECT_EQ(List(request).sequence(), first.sequence() + 3);
}

TEST_F(ListAdaptersTest, TheSummaryIsOfAllAdapters) {
  Load("a");
  Load("b");
  Request request;
  request.set_name_prefix("b");
  const v1::AdapterSummary summary = List(request).summary();
  EXPECT_EQ(summary.adapter_count(), 2);
  EXPECT_EQ(summary.resident_count(), 2);
  EXPECT_EQ(summary.memory_bytes(), server_.used_bytes());
  EXPECT_EQ(summary.memory_budget_bytes(), server_.registry().budget().limit());
  EXPECT_EQ(summary.parameter_count(), 2 * List(request).adapters(0).parameter_count());
}

TEST_F(ListAdaptersTest, ForgedTokensAreRefused) {
  Request request;
  request.set_page_token("forged");
  const auto reply = server_.List(request);
  EXPECT_THAT(reply.status, IsRpcError(Reason::kInvalidField));
  EXPECT_THAT(reply.status, HasRpcMetadata("field", "page_token"));
}

TEST_F(ListAdaptersTest, EverythingIsMoreThanAPage) {
  for (int i = 0; i < 1001; ++i) Load(fmt::format("a{}", 10000 + i));
  const std::vector<AdapterSnapshot> all = ListEverything(server_.registry());
  ASSERT_THAT(all, SizeIs(1001));
  EXPECT_EQ(all.front().name, "a10000");
  EXPECT_EQ(all.back().name, "a11000");
  Request request;
  request.set_page_size(5000);
  EXPECT_THAT(List(request).adapters(), SizeIs(1000));
}

}  // namespace
}  // namespace adapterd
