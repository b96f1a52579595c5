// Clients of StreamProjections, and a server whose loads and workers stop where a test wants them.
#ifndef ADAPTERD_TESTS_SERVICE_STREAM_FIXTURE_H_
#define ADAPTERD_TESTS_SERVICE_STREAM_FIXTURE_H_

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/service/projection_fixture.h"
#include "tests/testing/fake_sources.h"

namespace adapterd {

// One client's stream. Ended with the object, whatever is on its way.
class Stream {
 public:
  explicit Stream(TestServer& server, absl::Time deadline = absl::InfiniteFuture()) {
    if (deadline != absl::InfiniteFuture()) context_.set_deadline(absl::ToChronoTime(deadline));
    call_ = server.projections().StreamProjections(&context_);
  }
  ~Stream() {
    context_.TryCancel();
    if (call_ != nullptr) Status();
  }

  // Waits until the server takes it; false when the stream has ended.
  bool Send(uint64_t id, const v1::ApplyProjectionRequest& request) {
    v1::StreamProjectionsRequest message;
    message.set_request_id(id);
    *message.mutable_request() = request;
    return Send(message);
  }
  bool Send(const v1::StreamProjectionsRequest& message) { return call_->Write(message); }
  void HalfClose() { call_->WritesDone(); }
  void Cancel() { context_.TryCancel(); }

  // The next reply; nullopt when the stream has ended.
  std::optional<v1::StreamProjectionsResponse> Next() {
    v1::StreamProjectionsResponse response;
    if (!call_->Read(&response)) return std::nullopt;
    return response;
  }

  // Reads what is left and gives how the stream ended. Once.
  grpc::Status Status() {
    while (Next()) {
    }
    const grpc::Status status = call_->Finish();
    call_ = nullptr;
    return status;
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<
      grpc::ClientReaderWriter<v1::StreamProjectionsRequest, v1::StreamProjectionsResponse>>
      call_;
};

// Requests of up to kShortRows rows are computed where they arrive, longer ones by one worker.
class StreamFixture : public ::testing::Test {
 protected:
  static constexpr char kPath[] = "model.layers.0.self_attn.q_proj";
  static constexpr int64_t kShortRows = 10;
  static constexpr int64_t kLongRows = 50;

  StreamFixture() { Start({}); }
  ~StreamFixture() override {
    sources_.OpenAllGates();
    workers_gate_.Open();
  }

  // A server with "x" and "y" of two sources, neither loaded.
  void Start(TestServerOptions options) {
    sources_.Put("x");
    sources_.Put("y");
    options.opener = sources_.opener();
    options.threads = 1;
    options.short_flops = kShortRows * kFlopsPerRow;
    server_ = std::make_unique<TestServer>(options);
  }

  void Load(const std::string& name) { ASSERT_THAT(server_->Load(name, name).status, IsRpcOk()); }

  // Starts a load of `name` that stands before the read gate of its source.
  void BlockLoad(const std::string& name) {
    sources_[name].read_gate.Close();
    LoadRequest request;
    request.name = name;
    request.source.source = name;
    server_->registry().Load(std::move(request), [](const absl::StatusOr<LoadResult>&) {});
    sources_[name].read_gate.AwaitVisitor();
  }

  // Keeps the worker busy until workers_gate_ is opened.
  void BlockWorkers() {
    workers_gate_.Close();
    server_->workers().Submit([this] { workers_gate_.Pass(); });
    workers_gate_.AwaitVisitor();
  }

  // Row i holds i + `first`, so that no two replies are equal.
  static v1::ApplyProjectionRequest Request(const std::string& name, int64_t rows,
                                            int64_t first = 0) {
    std::vector<float> values(rows * 8);
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(first + static_cast<int64_t>(i) / 8);
    }
    v1::ApplyProjectionRequest request;
    *request.mutable_input() = DataTensor(DType::kF32, {rows, 8}, values);
    *request.mutable_adapter() = Ref(name);
    AddPath(request, kPath);
    return request;
  }

  // What the unary RPC says, with the outputs in full.
  v1::ApplyProjectionResponse Unary(const v1::ApplyProjectionRequest& request) {
    const auto reply = server_->Apply(request);
    EXPECT_THAT(reply.status, IsRpcOk());
    return reply.response;
  }

  static void ExpectReply(const std::optional<v1::StreamProjectionsResponse>& reply, uint64_t id,
                          const v1::ApplyProjectionResponse& expected) {
    ASSERT_TRUE(reply) << "the stream has ended before reply " << id;
    EXPECT_EQ(reply->request_id(), id);
    EXPECT_FALSE(reply->has_error()) << reply->error().ShortDebugString();
    EXPECT_EQ(reply->response().SerializeAsString(), expected.SerializeAsString());
  }

  static void ExpectError(const std::optional<v1::StreamProjectionsResponse>& reply, uint64_t id,
                          Reason reason) {
    ASSERT_TRUE(reply) << "the stream has ended before reply " << id;
    EXPECT_EQ(reply->request_id(), id);
    ASSERT_TRUE(reply->has_error());
    EXPECT_EQ(reply->error().reason(), ReasonName(reason)) << reply->error().message();
    EXPECT_EQ(reply->error().code(), static_cast<int>(ReasonCode(reason)));
    EXPECT_FALSE(reply->error().message().empty());
  }

  double ComputedRows() { return server_->Metric("adapterd_apply_rows_total"); }
  void AwaitComputedRows(double rows) {
    SpinUntil([&] { return ComputedRows() >= rows; });
  }
  void AwaitHandles(const std::string& name, int count) {
    SpinUntil([&] { return server_->registry().Get(name)->in_flight == count; });
  }

  // Once the server has done with every call, it holds nothing for any. Opens the gates.
  void ExpectNothingLeft() {
    workers_gate_.Open();
    server_->AwaitNoCalls();
    SpinUntil([&] {
      return server_->inflight_bytes() == 0 && server_->workers().queue_length() == 0 &&
             server_->buffers().used_bytes() == 0;
    });
    for (const char* name : {"x", "y"}) {
      const auto adapter = server_->registry().Get(name);
      if (!adapter.ok()) continue;
      EXPECT_EQ(adapter->in_flight, 0) << name;
    }
  }

  FakeSources sources_;
  Gate workers_gate_;
  std::unique_ptr<TestServer> server_;

 private:
  static constexpr int64_t kFlopsPerRow = 2 * 2 * (8 + 4);  // of FakeModule: rank 2, 8 to 4
};

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_SERVICE_STREAM_FIXTURE_H_
