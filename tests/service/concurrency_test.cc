// Requests that meet loads, unloads and each other; callers that go away.
#include <grpcpp/grpcpp.h>

#include <future>
#include <thread>

#include "tests/service/projection_fixture.h"
#include "tests/testing/fake_sources.h"

namespace adapterd {
namespace {

constexpr char kPath[] = "model.layers.0.self_attn.q_proj";

// A call that runs on a thread of its own and can be cancelled.
template <typename Request, typename Response>
class Running {
 public:
  using Send = std::function<grpc::Status(grpc::ClientContext*, const Request&, Response*)>;

  Running(Send send, const Request& request)
      : status_(std::async(std::launch::async, [this, send = std::move(send), request] {
          return send(&context_, request, &response_);
        })) {}
  ~Running() {
    if (!status_.valid()) return;
    Cancel();
    status_.wait();
  }

  void Cancel() { context_.TryCancel(); }
  grpc::Status Wait() { return status_.get(); }
  const Response& response() const { return response_; }

 private:
  grpc::ClientContext context_;
  Response response_;
  std::future<grpc::Status> status_;
};

using RunningLoad = Running<v1::LoadAdapterRequest, v1::LoadAdapterResponse>;
using RunningApply = Running<v1::ApplyProjectionRequest, v1::ApplyProjectionResponse>;
using RunningUnload = Running<v1::UnloadAdapterRequest, v1::UnloadAdapterResponse>;

// One compute thread, and sources whose loads stop where a test wants them to.
class ConcurrencyTest : public ::testing::Test {
 protected:
  ConcurrencyTest() : source_(sources_.Put("a")) { Start({}); }
  ~ConcurrencyTest() override {
    sources_.OpenAllGates();
    workers_gate_.Open();
  }

  void Start(TestServerOptions options) {
    options.opener = sources_.opener();
    options.threads = 1;
    options.short_flops = 0;
    server_ = std::make_unique<TestServer>(options);
  }

  std::unique_ptr<RunningLoad> StartLoad(const std::string& name) {
    v1::LoadAdapterRequest request;
    request.set_name(name);
    request.set_source("a");
    return std::make_unique<RunningLoad>(
        [this](auto* context, const auto& sent, auto* response) {
          return server_->adapters().LoadAdapter(context, sent, response);
        },
        request);
  }

  // A load of `name` that stands before the read gate.
  std::unique_ptr<RunningLoad> BlockedLoad(const std::string& name) {
    source_.read_gate.Close();
    auto load = StartLoad(name);
    source_.read_gate.AwaitVisitor();
    return load;
  }

  static v1::ApplyProjectionRequest ApplyRequest(const std::string& name, int64_t rows = 1) {
    v1::ApplyProjectionRequest request;
    *request.mutable_input() = DataTensor(DType::kF32, {rows, 8}, std::vector<float>(rows * 8, 1));
    *request.mutable_adapter() = Ref(name);
    AddPath(request, kPath);
    return request;
  }

  std::unique_ptr<RunningApply> StartApply(const v1::ApplyProjectionRequest& request) {
    return std::make_unique<RunningApply>(
        [this](auto* context, const auto& sent, auto* response) {
          return server_->projections().ApplyProjection(context, sent, response);
        },
        request);
  }

  std::unique_ptr<RunningUnload> StartUnload(const std::string& name) {
    v1::UnloadAdapterRequest request;
    request.set_name(name);
    return std::make_unique<RunningUnload>(
        [this](auto* context, const auto& sent, auto* response) {
          return server_->adapters().UnloadAdapter(context, sent, response);
        },
        request);
  }

  // Keeps the compute thread busy until workers_gate_ is opened.
  void BlockWorkers() {
    workers_gate_.Close();
    server_->workers().Submit([this] { workers_gate_.Pass(); });
    workers_gate_.AwaitVisitor();
  }

  void AwaitInflight(bool any) {
    SpinUntil([&] { return (server_->inflight_bytes() > 0) == any; });
  }
  void AwaitHandles(const std::string& name, int count) {
    SpinUntil([&] { return server_->registry().Get(name)->in_flight == count; });
  }
  void AwaitGone(const std::string& name) {
    SpinUntil([&] { return !server_->registry().Get(name).ok(); });
  }

  // What FakeReader's factors make of ones: rank 2, A of 0.5, B of 0.25.
  static void ExpectRight(const v1::ApplyProjectionResponse& response) {
    ASSERT_EQ(response.outputs_size(), 1);
    for (const float value : FloatsOf(response.outputs(0).output())) EXPECT_EQ(value, 2.0f);
  }

  FakeSources sources_;
  FakeSource& source_;
  Gate workers_gate_;
  std::unique_ptr<TestServer> server_;
};

TEST_F(ConcurrencyTest, AThousandAppliesDuringAnUnloadAreRightOrNotFound) {
  const auto loaded = server_->Load("x", "a");
  ASSERT_THAT(loaded.status, IsRpcOk());
  std::atomic<int> right{0};
  std::atomic<int> not_found{0};
  std::vector<std::thread> clients;
  for (int t = 0; t < 8; ++t) {
    clients.emplace_back([&] {
      for (int i = 0; i < 125; ++i) {
        const auto reply = server_->Apply(ApplyRequest("x"));
        if (reply.status.ok()) {
          ExpectRight(reply.response);
          ++right;
        } else {
          EXPECT_THAT(reply.status, IsRpcError(Reason::kAdapterNotFound));
          ++not_found;
        }
      }
    });
  }
  SpinUntil([&] { return right >= 300; });
  const auto unloaded = server_->Unload("x");
  for (std::thread& client : clients) client.join();
  ASSERT_THAT(unloaded.status, IsRpcOk());
  EXPECT_TRUE(unloaded->freed());
  EXPECT_EQ(unloaded->freed_bytes(), loaded->adapter().memory_bytes());
  EXPECT_EQ(right + not_found, 1000);
  EXPECT_EQ(server_->used_bytes(), 0);
  EXPECT_EQ(server_->inflight_bytes(), 0);
}

TEST_F(ConcurrencyTest, AppliesDuringReplacesAreOfOneRevisionEach) {
  // Rank r of the fake gives outputs of r, so the number tells the revision.
  std::map<std::string, float> output_of;
  for (const int64_t rank : {1, 3}) {
    FakeContent content;
    content.text = std::to_string(rank);
    content.modules[0].rank = rank;
    sources_.Put(content.text, content);
    output_of[DigestOf(content).revision] = static_cast<float>(rank);
  }
  ASSERT_THAT(server_->Load("x", "1").status, IsRpcOk());
  std::atomic<bool> done{false};
  std::vector<std::thread> clients;
  for (int t = 0; t < 3; ++t) {
    clients.emplace_back([&] {
      while (!done) {
        const auto reply = server_->Apply(ApplyRequest("x", 3));
        ASSERT_THAT(reply.status, IsRpcOk());
        const float expected = output_of.at(reply->adapters(0).revision());
        for (const float value : FloatsOf(reply->outputs(0).output())) {
          ASSERT_EQ(value, expected);
        }
      }
    });
  }
  v1::LoadAdapterRequest request;
  request.set_name("x");
  request.set_replace(true);
  for (int i = 0; i < 100; ++i) {
    request.set_source(i % 2 == 0 ? "3" : "1");
    EXPECT_THAT(server_->Load(request).status, IsRpcOk());
  }
  done = true;
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(server_->Unload("x")->freed());
  EXPECT_EQ(server_->used_bytes(), 0);
}

TEST_F(ConcurrencyTest, AnApplyWaitsForAnAdapterThatIsLoading) {
  const auto load = BlockedLoad("x");
  const auto apply = StartApply(ApplyRequest("x"));
  AwaitInflight(true);
  source_.read_gate.Open();
  EXPECT_THAT(load->Wait(), IsRpcOk());
  EXPECT_THAT(apply->Wait(), IsRpcOk());
  ExpectRight(apply->response());
}

TEST_F(ConcurrencyTest, AnApplyThatIsCancelledWhileItWaitsHoldsNothing) {
  const auto load = BlockedLoad("x");
  const auto apply = StartApply(ApplyRequest("x"));
  AwaitInflight(true);
  apply->Cancel();
  EXPECT_EQ(apply->Wait().error_code(), grpc::StatusCode::CANCELLED);
  AwaitInflight(false);  // while the load still runs
  source_.read_gate.Open();
  EXPECT_THAT(load->Wait(), IsRpcOk());
  EXPECT_EQ(server_->registry().Get("x")->in_flight, 0);
}

TEST_F(ConcurrencyTest, AnApplyThatIsCancelledInTheQueueHoldsNothing) {
  ASSERT_THAT(server_->Load("x", "a").status, IsRpcOk());
  BlockWorkers();
  const auto apply = StartApply(ApplyRequest("x", 5));
  AwaitHandles("x", 1);
  apply->Cancel();
  EXPECT_EQ(apply->Wait().error_code(), grpc::StatusCode::CANCELLED);
  workers_gate_.Open();
  AwaitHandles("x", 0);
  AwaitInflight(false);
  ASSERT_THAT(server_->Unload("x").status, IsRpcOk());
  EXPECT_EQ(server_->used_bytes(), 0);
}

TEST_F(ConcurrencyTest, DeadlinesEndTheWait) {
  const auto load = BlockedLoad("x");
  for (const auto wait : {std::chrono::milliseconds(-1000), std::chrono::milliseconds(30)}) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + wait);
    v1::ApplyProjectionResponse response;
    const grpc::Status status =
        server_->projections().ApplyProjection(&context, ApplyRequest("x"), &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  AwaitInflight(false);
  source_.read_gate.Open();
  EXPECT_THAT(load->Wait(), IsRpcOk());
}

TEST_F(ConcurrencyTest, ALoadThatItsOnlyCallerCancelsIsDropped) {
  const auto load = BlockedLoad("x");
  load->Cancel();
  EXPECT_EQ(load->Wait().error_code(), grpc::StatusCode::CANCELLED);
  const std::string handled =
      "grpc_server_handled_total{grpc_code=\"Canceled\",grpc_method=\"LoadAdapter\",grpc_service="
      "\"adapterd.v1.AdapterService\"}";
  SpinUntil([&] { return server_->MetricsText().find(handled) != std::string::npos; });
  source_.read_gate.Open();
  AwaitGone("x");
  EXPECT_EQ(server_->used_bytes(), 0);
  EXPECT_THAT(server_->Load("x", "a").status, IsRpcOk());
}

TEST_F(ConcurrencyTest, EqualLoadsShareOneRead) {
  std::vector<std::unique_ptr<RunningLoad>> loads;
  loads.push_back(BlockedLoad("x"));
  for (int i = 0; i < 9; ++i) loads.push_back(StartLoad("x"));
  const std::string started =
      "grpc_server_started_total{grpc_method=\"LoadAdapter\",grpc_service=\"adapterd.v1."
      "AdapterService\"}";
  SpinUntil([&] { return server_->Metric(started) == 10; });
  source_.read_gate.Open();
  for (const auto& load : loads) {
    EXPECT_THAT(load->Wait(), IsRpcOk());
    EXPECT_EQ(load->response().adapter().revision(), DigestOf(FakeContent()).revision);
  }
  EXPECT_EQ(source_.reads, 1);
}

TEST_F(ConcurrencyTest, AnUnloadWaitsForTheRequestsThatUseIt) {
  const auto loaded = server_->Load("x", "a");
  BlockWorkers();
  const auto apply = StartApply(ApplyRequest("x"));
  AwaitHandles("x", 1);
  const auto unload = StartUnload("x");
  AwaitGone("x");
  EXPECT_EQ(server_->used_bytes(), loaded->adapter().memory_bytes());
  EXPECT_THAT(server_->Apply(ApplyRequest("x")).status, IsRpcError(Reason::kAdapterNotFound));
  workers_gate_.Open();
  EXPECT_THAT(apply->Wait(), IsRpcOk());
  ExpectRight(apply->response());
  EXPECT_THAT(unload->Wait(), IsRpcOk());
  EXPECT_EQ(unload->response().freed_bytes(), loaded->adapter().memory_bytes());
  EXPECT_EQ(server_->used_bytes(), 0);
}

TEST_F(ConcurrencyTest, AnUnloadThatIsCancelledFreesTheMemoryAllTheSame) {
  ASSERT_THAT(server_->Load("x", "a").status, IsRpcOk());
  BlockWorkers();
  const auto apply = StartApply(ApplyRequest("x"));
  AwaitHandles("x", 1);
  const auto unload = StartUnload("x");
  AwaitGone("x");
  unload->Cancel();
  EXPECT_EQ(unload->Wait().error_code(), grpc::StatusCode::CANCELLED);
  workers_gate_.Open();
  EXPECT_THAT(apply->Wait(), IsRpcOk());
  EXPECT_EQ(server_->used_bytes(), 0);
}

TEST_F(ConcurrencyTest, AnUnloadThatDoesNotWaitSaysWhatIsNotFreeYet) {
  ASSERT_THAT(server_->Load("x", "a").status, IsRpcOk());
  BlockWorkers();
  const auto apply = StartApply(ApplyRequest("x"));
  AwaitHandles("x", 1);
  v1::UnloadAdapterRequest request;
  request.set_name("x");
  request.set_wait(false);
  const auto unloaded = server_->Unload(request);
  ASSERT_THAT(unloaded.status, IsRpcOk());
  EXPECT_FALSE(unloaded->freed());
  EXPECT_EQ(unloaded->freed_bytes(), 0);
  workers_gate_.Open();
  EXPECT_THAT(apply->Wait(), IsRpcOk());
}

TEST_F(ConcurrencyTest, TooMuchAtOnceIsRefusedWithAHintWhenToRetry) {
  TestServerOptions options;
  options.max_inflight_bytes = 10'000;
  Start(options);
  const auto load = BlockedLoad("x");
  const auto first = StartApply(ApplyRequest("x", 200));  // 6400 bytes
  AwaitInflight(true);
  const auto refused = server_->Apply(ApplyRequest("x", 200));
  EXPECT_THAT(refused.status, IsRpcError(Reason::kOverloaded));
  const auto details = DetailsOf(refused.status);
  ASSERT_TRUE(details->retry.has_value());
  EXPECT_GT(details->retry->retry_delay().nanos(), 0);
  EXPECT_EQ(server_->Metric("adapterd_rejected_total{reason=\"OVERLOADED\"}"), 1);
  source_.read_gate.Open();
  EXPECT_THAT(load->Wait(), IsRpcOk());
  EXPECT_THAT(first->Wait(), IsRpcOk());
  EXPECT_THAT(server_->Apply(ApplyRequest("x", 200)).status, IsRpcOk());
}

TEST_F(ConcurrencyTest, ARequestThatIsAnsweredHasLeftItsRoomToTheNext) {
  TestServerOptions options;
  options.max_inflight_bytes = 1000;
  Start(options);
  ASSERT_THAT(server_->Load("x", "a").status, IsRpcOk());
  // Each alone is larger than the limit, which is allowed only when nothing else is in.
  for (int i = 0; i < 300; ++i) {
    ASSERT_THAT(server_->Apply(ApplyRequest("x", 50)).status, IsRpcOk()) << i;
    ASSERT_EQ(server_->inflight_bytes(), 0);
    ASSERT_EQ(server_->registry().Get("x")->in_flight, 0);
  }
}

TEST_F(ConcurrencyTest, AShutdownEndsWhateverWaits) {
  const auto load = BlockedLoad("x");
  const auto apply = StartApply(ApplyRequest("x"));
  AwaitInflight(true);
  server_->Shutdown();
  EXPECT_FALSE(load->Wait().ok());
  EXPECT_FALSE(apply->Wait().ok());
  source_.read_gate.Open();
  server_.reset();  // waits for the load, which finds that nobody wants it
}

}  // namespace
}  // namespace adapterd
