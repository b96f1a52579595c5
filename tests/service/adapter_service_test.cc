// LoadAdapter, GetAdapter, UnloadAdapter, ValidateAdapter and GetServerInfo over real folders.
#include <grpcpp/grpcpp.h>

#include <set>

#include "tests/service/projection_fixture.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class AdapterServiceTest : public ProjectionFixture {
 protected:
  // Two modules of ranks 2 and 3; in "folder".
  PeftBuilder WriteTwo(const std::string& folder, uint32_t seed = 1) {
    PeftBuilder builder(seed);
    builder.Add(kQ0, 2, kIn, kOut)
        .Add(kQ1, 3, kIn, kOut, DType::kBF16)
        .Write(server_.dir(), folder);
    return builder;
  }

  static v1::LoadAdapterRequest Request(const std::string& name, const std::string& source) {
    v1::LoadAdapterRequest request;
    request.set_name(name);
    request.set_source(source);
    return request;
  }

  v1::Adapter Describe(const std::string& name, v1::AdapterView view) {
    v1::GetAdapterRequest request;
    request.set_name(name);
    request.set_view(view);
    const auto reply = server_.Get(request);
    EXPECT_THAT(reply.status, IsRpcOk());
    return reply->adapter();
  }
};

TEST_F(AdapterServiceTest, ALoadDescribesTheAdapter) {
  const PeftBuilder builder = WriteTwo("folder");
  v1::LoadAdapterRequest request = Request("x", "folder");
  (*request.mutable_labels())["team"] = "red";
  request.set_pinned(true);
  const auto reply = server_.Load(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  EXPECT_FALSE(reply->already_loaded());
  EXPECT_EQ(reply->replaced_revision(), "");
  EXPECT_THAT(reply->evicted(), IsEmpty());
  const v1::Adapter& adapter = reply->adapter();
  EXPECT_EQ(adapter.name(), "x");
  EXPECT_EQ(adapter.public_id(), "base:x");
  EXPECT_THAT(adapter.revision(), SizeIs(64));
  EXPECT_THAT(adapter.weights_sha256(), SizeIs(64));
  EXPECT_EQ(adapter.state(), v1::ADAPTER_STATE_READY);
  EXPECT_EQ(adapter.source(), "folder");
  EXPECT_EQ(adapter.format(), v1::ADAPTER_FORMAT_PEFT);
  EXPECT_EQ(adapter.method(), "lora");
  EXPECT_EQ(adapter.base_model(), "base");
  EXPECT_THAT(adapter.ranks(), ElementsAre(2, 3));
  EXPECT_THAT(adapter.target_modules(), ElementsAre("q_proj"));
  EXPECT_EQ(adapter.layer_count(), 2);
  EXPECT_EQ(adapter.module_count(), 2);
  const int64_t parameters = (2 + 3) * (kIn + kOut);
  const int64_t original = 2 * kIn * kOut;
  EXPECT_EQ(adapter.parameter_count(), parameters);
  EXPECT_EQ(adapter.original_parameter_count(), original);
  EXPECT_DOUBLE_EQ(adapter.compression_ratio(),
                   static_cast<double>(parameters) / static_cast<double>(original + parameters));
  EXPECT_EQ(
      adapter.file_bytes(),
      static_cast<int64_t>(ReadFile(server_.dir() / "folder/adapter_model.safetensors").size()));
  EXPECT_EQ(adapter.memory_bytes(), server_.used_bytes());
  EXPECT_EQ(adapter.labels().at("team"), "red");
  EXPECT_TRUE(adapter.pinned());
  EXPECT_TRUE(adapter.enabled());
  EXPECT_NE(adapter.etag(), "");
  EXPECT_EQ(adapter.use_count(), 0);
  EXPECT_EQ(adapter.in_flight(), 0);
  EXPECT_GT(adapter.load_time().seconds(), 0);
  EXPECT_FALSE(adapter.has_last_use_time());
  EXPECT_TRUE(adapter.has_load_duration());
  EXPECT_FALSE(adapter.has_error());
  EXPECT_THAT(adapter.modules(), IsEmpty());
}

TEST_F(AdapterServiceTest, TheFullViewListsEveryModule) {
  WriteTwo("folder");
  v1::LoadAdapterRequest request = Request("x", "folder");
  request.set_view(v1::ADAPTER_VIEW_FULL);
  const auto reply = server_.Load(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  ASSERT_EQ(reply->adapter().modules_size(), 2);
  const v1::AdapterModule& module = reply->adapter().modules(1);
  EXPECT_EQ(module.path(), kQ1);
  EXPECT_EQ(module.layer(), 1);
  EXPECT_EQ(module.target(), "q_proj");
  EXPECT_EQ(module.kind(), v1::MODULE_KIND_LINEAR);
  EXPECT_EQ(module.in_features(), kIn);
  EXPECT_EQ(module.out_features(), kOut);
  EXPECT_EQ(module.rank(), 3);
  EXPECT_EQ(module.experts(), 0);
  EXPECT_EQ(module.alpha(), PeftBuilder::kAlpha);
  EXPECT_EQ(module.scale(), PeftBuilder::kAlpha / 3);
  EXPECT_EQ(module.dtype(), v1::DATA_TYPE_BF16);
  EXPECT_FALSE(module.has_lora_bias());
  EXPECT_FALSE(module.replaces_bias());
  EXPECT_FALSE(module.has_magnitude());
  EXPECT_EQ(module.lora_a_tensor(), std::string("base_model.model.") + kQ1 + ".lora_A.weight");
  EXPECT_EQ(module.lora_b_tensor(), std::string("base_model.model.") + kQ1 + ".lora_B.weight");
  EXPECT_EQ(reply->adapter().modules(0).path(), kQ0);
  EXPECT_EQ(reply->adapter().modules(0).dtype(), v1::DATA_TYPE_F32);
}

TEST_F(AdapterServiceTest, ViewsOfGetDifferInTheModulesAlone) {
  WriteTwo("folder");
  ASSERT_THAT(server_.Load("x", "folder").status, IsRpcOk());
  v1::Adapter full = Describe("x", v1::ADAPTER_VIEW_FULL);
  EXPECT_EQ(full.modules_size(), 2);
  full.clear_modules();
  for (const v1::AdapterView view : {v1::ADAPTER_VIEW_UNSPECIFIED, v1::ADAPTER_VIEW_BASIC}) {
    // Maps serialize in any order; debug strings are sorted.
    EXPECT_EQ(Describe("x", view).DebugString(), full.DebugString());
  }
}

TEST_F(AdapterServiceTest, GetCanPickModules) {
  WriteTwo("folder");
  ASSERT_THAT(server_.Load("x", "folder").status, IsRpcOk());
  const auto pick = [&](const std::string& path, const std::string& target, int layer) {
    v1::GetAdapterRequest request;
    request.set_name("x");
    request.mutable_module()->set_path(path);
    request.mutable_module()->set_target(target);
    if (layer >= 0) request.mutable_module()->set_layer(layer);
    return server_.Get(request);
  };
  const auto by_path = pick(kQ1, "", -1);
  ASSERT_EQ(by_path->adapter().modules_size(), 1);
  EXPECT_EQ(by_path->adapter().modules(0).path(), kQ1);
  EXPECT_EQ(by_path->adapter().module_count(), 2);
  EXPECT_EQ(pick("", "q_proj", 0)->adapter().modules(0).path(), kQ0);
  EXPECT_EQ(pick("", "q_proj", -1)->adapter().modules_size(), 2);

  const auto missing = pick("lm_head", "", -1);
  EXPECT_THAT(missing.status, IsRpcError(Reason::kModuleNotTargeted));
  EXPECT_THAT(missing.status, HasRpcMetadata("adapter", "x"));
  EXPECT_THAT(missing.status, HasRpcMetadata("module", "lm_head"));
  EXPECT_THAT(pick("", "", -1).status, IsRpcError(Reason::kInvalidField));
  EXPECT_THAT(pick(kQ0, "q_proj", -1).status, IsRpcError(Reason::kInvalidField));
}

TEST_F(AdapterServiceTest, LoadingTheSameAgainIsANoOp) {
  WriteTwo("folder");
  WriteTwo("copy");
  const auto first = server_.Load("x", "folder");
  const auto second = server_.Load("x", "folder");
  ASSERT_THAT(second.status, IsRpcOk());
  EXPECT_TRUE(second->already_loaded());
  EXPECT_EQ(second->adapter().etag(), first->adapter().etag());
  EXPECT_TRUE(server_.Load("x", "copy")->already_loaded());
  EXPECT_EQ(server_.used_bytes(), first->adapter().memory_bytes());
}

TEST_F(AdapterServiceTest, OtherContentNeedsReplace) {
  WriteTwo("one", 1);
  WriteTwo("two", 2);
  const auto one = server_.Load("x", "one");
  const auto refused = server_.Load("x", "two");
  EXPECT_THAT(refused.status, IsRpcError(Reason::kAdapterExists));
  EXPECT_THAT(refused.status, HasRpcMetadata("adapter", "x"));
  v1::LoadAdapterRequest request = Request("x", "two");
  request.set_replace(true);
  const auto replaced = server_.Load(request);
  ASSERT_THAT(replaced.status, IsRpcOk());
  EXPECT_FALSE(replaced->already_loaded());
  EXPECT_EQ(replaced->replaced_revision(), one->adapter().revision());
  EXPECT_NE(replaced->adapter().revision(), one->adapter().revision());
  EXPECT_THAT(replaced->adapter().draining_revisions(), IsEmpty());
  EXPECT_EQ(server_.used_bytes(), replaced->adapter().memory_bytes());
}

TEST_F(AdapterServiceTest, AnExpectedDigestIsChecked) {
  WriteTwo("folder");
  const auto loaded = server_.Load("x", "folder");
  for (const std::string& digest :
       {loaded->adapter().revision(), loaded->adapter().weights_sha256()}) {
    v1::LoadAdapterRequest request = Request("y", "folder");
    request.set_expected_digest(digest);
    EXPECT_THAT(server_.Load(request).status, IsRpcOk());
    EXPECT_THAT(server_.Unload("y").status, IsRpcOk());
  }
  v1::LoadAdapterRequest request = Request("y", "folder");
  request.set_expected_digest(std::string(64, '0'));
  const auto refused = server_.Load(request);
  EXPECT_THAT(refused.status, IsRpcError(Reason::kDigestMismatch));
  EXPECT_THAT(refused.status, HasRpcMetadata("expected", std::string(64, '0')));
  EXPECT_THAT(refused.status, HasRpcMetadata("actual", loaded->adapter().revision()));
}

TEST_F(AdapterServiceTest, AnAdapterOverTheBudgetIsRefusedWithTheNumbers) {
  TestServerOptions options;
  options.memory_budget_bytes = 100;
  TestServer server(options);
  PeftBuilder(1).Add(kQ0, 2, kIn, kOut).Write(server.dir(), "folder");
  const auto reply = server.Load("x", "folder");
  EXPECT_THAT(reply.status, IsRpcError(Reason::kMemoryBudgetExceeded));
  EXPECT_THAT(reply.status, HasRpcMetadata("adapter", "x"));
  EXPECT_THAT(reply.status, HasRpcMetadata("needed_bytes", ::testing::Not("0")));
  EXPECT_THAT(reply.status, HasRpcMetadata("used_bytes", "0"));
  EXPECT_THAT(reply.status, HasRpcMetadata("budget_bytes", "100"));
  EXPECT_EQ(server.used_bytes(), 0);
  EXPECT_THAT(server.List()->adapters(), IsEmpty());
}

TEST_F(AdapterServiceTest, UnloadAnswersWithTheBytesThatAreFree) {
  WriteTwo("folder");
  const auto loaded = server_.Load("x", "folder");
  const auto reply = server_.Unload("x");
  ASSERT_THAT(reply.status, IsRpcOk());
  EXPECT_EQ(reply->freed_bytes(), loaded->adapter().memory_bytes());
  EXPECT_TRUE(reply->freed());
  EXPECT_EQ(server_.used_bytes(), 0);
  v1::GetAdapterRequest get;
  get.set_name("x");
  EXPECT_THAT(server_.Get(get).status, IsRpcError(Reason::kAdapterNotFound));
}

TEST_F(AdapterServiceTest, UnloadOfNothingIsAnErrorUnlessAllowed) {
  v1::UnloadAdapterRequest request;
  request.set_name("x");
  const auto refused = server_.Unload(request);
  EXPECT_THAT(refused.status, IsRpcError(Reason::kAdapterNotFound));
  EXPECT_THAT(refused.status, HasRpcMetadata("adapter", "x"));
  request.set_allow_missing(true);
  const auto allowed = server_.Unload(request);
  ASSERT_THAT(allowed.status, IsRpcOk());
  EXPECT_EQ(allowed->freed_bytes(), 0);
  EXPECT_FALSE(allowed->freed());  // there was nothing to free
}

TEST_F(AdapterServiceTest, AllowingWhatIsMissingForgivesNothingElse) {
  WriteTwo("folder");
  v1::LoadAdapterRequest load = Request("x", "folder");
  load.set_pinned(true);
  ASSERT_THAT(server_.Load(load).status, IsRpcOk());
  v1::UnloadAdapterRequest request;
  request.set_name("x");
  request.set_allow_missing(true);
  EXPECT_THAT(server_.Unload(request).status, IsRpcError(Reason::kAdapterPinned));
  request.set_force(true);
  request.set_revision(std::string(64, '0'));
  EXPECT_THAT(server_.Unload(request).status, IsRpcError(Reason::kRevisionMismatch));
  request.set_revision(server_.registry().Get("x")->digest.revision);
  EXPECT_THAT(server_.Unload(request).status, IsRpcOk());
}

TEST_F(AdapterServiceTest, ValidateDescribesAGoodAdapterAndChangesNothing) {
  WriteTwo("folder");
  v1::ValidateAdapterRequest request;
  request.set_name("x");
  request.set_source("folder");
  const auto checked = server_.Validate(request);
  ASSERT_THAT(checked.status, IsRpcOk());
  EXPECT_TRUE(checked->valid());
  EXPECT_TRUE(checked->fits());
  EXPECT_THAT(checked->problems(), IsEmpty());
  EXPECT_THAT(checked->would_evict(), IsEmpty());
  EXPECT_EQ(checked->adapter().modules_size(), 2);
  EXPECT_EQ(server_.used_bytes(), 0);
  EXPECT_THAT(server_.List()->adapters(), IsEmpty());
  const auto loaded = server_.Load("x", "folder");
  EXPECT_EQ(checked->adapter().revision(), loaded->adapter().revision());
  EXPECT_EQ(checked->memory_bytes(), loaded->adapter().memory_bytes());
}

TEST_F(AdapterServiceTest, ValidateReportsAllProblemsInOneAnswer) {
  PeftBuilder(1)
      .Add(kQ0, 2, kIn, kOut)
      .Poison(std::numeric_limits<float>::quiet_NaN())
      .Write(server_.dir(), "nan");
  PeftBuilder(1)
      .Add(kQ0, 2, kIn, kOut)
      .Config("lora_alpha", nullptr)
      .Config("use_qalora", true)
      .Config("r", 0)
      .Write(server_.dir(), "config");
  v1::ValidateAdapterRequest request;
  request.set_name("x");
  request.set_source("nan");
  const auto nan = server_.Validate(request);
  ASSERT_THAT(nan.status, IsRpcOk());
  EXPECT_FALSE(nan->valid());
  EXPECT_FALSE(nan->has_adapter());
  ASSERT_EQ(nan->problems_size(), 1);
  EXPECT_EQ(nan->problems(0).severity(), v1::SEVERITY_ERROR);
  EXPECT_EQ(nan->problems(0).reason(), "NON_FINITE_WEIGHTS");
  EXPECT_EQ(nan->problems(0).tensor(), std::string("base_model.model.") + kQ0 + ".lora_B.weight");
  EXPECT_NE(nan->problems(0).file(), "");

  request.set_source("config");
  const auto config = server_.Validate(request);
  ASSERT_THAT(config.status, IsRpcOk());
  EXPECT_FALSE(config->valid());
  std::set<std::string> reasons;
  for (const v1::Problem& problem : config->problems()) {
    if (problem.severity() == v1::SEVERITY_ERROR) reasons.insert(problem.reason());
  }
  EXPECT_THAT(reasons, ElementsAre("MALFORMED_CONFIG", "UNSUPPORTED_ADAPTER"));
  EXPECT_GE(config->problems_size(), 3);
}

TEST_F(AdapterServiceTest, ValidateFailsWhenTheSourceCannotBeOpened) {
  v1::ValidateAdapterRequest request;
  request.set_name("x");
  request.set_source("nowhere");
  EXPECT_THAT(server_.Validate(request).status, IsRpcError(Reason::kSourceNotFound));
  request.set_source("../outside");
  EXPECT_THAT(server_.Validate(request).status, IsRpcError(Reason::kPathOutsideRoot));
}

TEST_F(AdapterServiceTest, ValidateNamesOnlyTheProblemThatKeptItFromOpening) {
  // Config problems are found as well, but do not say why there is no answer.
  PeftBuilder(1).Add(kQ0, 2, kIn, kOut).Config("lora_alpha", nullptr).Write(server_.dir(), "a");
  const auto weights = server_.dir() / "a/adapter_model.safetensors";
  std::filesystem::remove(weights);
  std::filesystem::create_symlink("/etc/hostname", weights);
  v1::ValidateAdapterRequest request;
  request.set_name("x");
  request.set_source("a");
  const auto reply = server_.Validate(request);
  EXPECT_THAT(reply.status, IsRpcError(Reason::kPathOutsideRoot));
}

TEST_F(AdapterServiceTest, ADrainingServerLoadsNothingMore) {
  WriteTwo("folder");
  server_.draining() = true;
  const auto reply = server_.Load("x", "folder");
  EXPECT_THAT(reply.status, IsRpcError(Reason::kDraining));
  EXPECT_TRUE(DetailsOf(reply.status)->retry.has_value());
  EXPECT_THAT(server_.List()->adapters(), IsEmpty());
}

TEST_F(AdapterServiceTest, ServerInfoIsWhatTheServerWasGiven) {
  const auto reply = server_.Info();
  ASSERT_THAT(reply.status, IsRpcOk());
  EXPECT_EQ(reply->version(), "test");
  EXPECT_EQ(reply->threads(), 2);
}

// The id that trailing metadata carry for a request that was sent with `id`.
std::string RequestIdFor(TestServer& server, const std::string& id) {
  grpc::ClientContext context;
  if (!id.empty()) context.AddMetadata("x-request-id", id);
  v1::GetServerInfoResponse response;
  EXPECT_TRUE(server.adapters().GetServerInfo(&context, {}, &response).ok());
  const auto& trailers = context.GetServerTrailingMetadata();
  EXPECT_EQ(trailers.count("x-request-id"), 1u);
  const auto found = trailers.find("x-request-id");
  return found == trailers.end() ? "" : std::string(found->second.data(), found->second.size());
}

TEST_F(AdapterServiceTest, EveryAnswerCarriesARequestId) {
  EXPECT_EQ(RequestIdFor(server_, "abc-1.2"), "abc-1.2");
  const std::string fresh = RequestIdFor(server_, "");
  EXPECT_THAT(fresh, SizeIs(16));
  EXPECT_NE(RequestIdFor(server_, ""), fresh);
  EXPECT_THAT(RequestIdFor(server_, "two words"), SizeIs(16));
  EXPECT_THAT(RequestIdFor(server_, std::string(200, 'x')), SizeIs(16));
}

}  // namespace
}  // namespace adapterd
