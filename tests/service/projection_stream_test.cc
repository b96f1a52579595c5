// StreamProjections: what is answered, in which order, and how a stream ends.
#include "service/projection_stream.h"

#include <fmt/format.h>
#include <grpcpp/generic/generic_stub.h>

#include <thread>

#include "tests/service/stream_fixture.h"
#include "tests/testing/wire.h"

namespace adapterd {
namespace {

class ProjectionStreamTest : public StreamFixture {};

TEST_F(ProjectionStreamTest, RepliesComeInTheOrderOfTheRequests) {
  Load("x");
  Load("y");
  TestRandom random(1);
  std::vector<v1::ApplyProjectionResponse> expected;
  Stream stream(*server_);
  std::vector<v1::ApplyProjectionRequest> requests;
  for (int i = 0; i < 300; ++i) {
    const int64_t rows = random.Below(2) == 0 ? 1 + random.Below(3) : kLongRows + random.Below(100);
    requests.push_back(Request(i % 3 == 0 ? "x" : "y", rows, i));
    expected.push_back(Unary(requests.back()));
  }
  std::thread sender([&] {
    for (uint64_t i = 0; i < requests.size(); ++i) EXPECT_TRUE(stream.Send(i, requests[i]));
    stream.HalfClose();
  });
  for (uint64_t i = 0; i < expected.size(); ++i) ExpectReply(stream.Next(), i, expected[i]);
  EXPECT_FALSE(stream.Next());
  sender.join();
  EXPECT_THAT(stream.Status(), IsRpcOk());
  ExpectNothingLeft();
}

TEST_F(ProjectionStreamTest, AShortRequestIsComputedBeforeALongOneAndAnsweredAfterIt) {
  Load("x");
  const auto first = Unary(Request("x", kLongRows, 1));
  const auto second = Unary(Request("x", 2, 2));
  const double before = ComputedRows();
  BlockWorkers();
  Stream stream(*server_);
  EXPECT_TRUE(stream.Send(1, Request("x", kLongRows, 1)));
  EXPECT_TRUE(stream.Send(2, Request("x", 2, 2)));
  AwaitComputedRows(before + 2);
  EXPECT_EQ(ComputedRows(), before + 2);
  workers_gate_.Open();
  ExpectReply(stream.Next(), 1, first);
  ExpectReply(stream.Next(), 2, second);
}

TEST_F(ProjectionStreamTest, IdsAreTheCallersOwn) {
  Load("x");
  const auto request = Request("x", 1);
  const auto expected = Unary(request);
  const std::vector<uint64_t> ids = {7, 7, 0, ~uint64_t{0}, 1};
  Stream stream(*server_);
  for (const uint64_t id : ids) {
    EXPECT_TRUE(stream.Send(id, request));
    ExpectReply(stream.Next(), id, expected);
  }
  v1::StreamProjectionsRequest without_id;
  *without_id.mutable_request() = request;
  EXPECT_TRUE(stream.Send(without_id));
  ExpectReply(stream.Next(), 0, expected);
}

TEST_F(ProjectionStreamTest, AStreamWithoutRequestsEndsWell) {
  Stream stream(*server_);
  stream.HalfClose();
  EXPECT_THAT(stream.Status(), IsRpcOk());
  ExpectNothingLeft();
}

TEST_F(ProjectionStreamTest, ABadRequestFailsAloneAndAsTheUnaryRpcDoes) {
  Load("x");
  std::vector<std::pair<v1::ApplyProjectionRequest, Reason>> bad;
  bad.emplace_back(Request("nobody", 1), Reason::kAdapterNotFound);
  bad.emplace_back(Request("nobody", kLongRows), Reason::kAdapterNotFound);
  bad.emplace_back(v1::ApplyProjectionRequest(), Reason::kInvalidField);
  bad.emplace_back(Request("x", 1), Reason::kShapeMismatch);
  bad.back().first.mutable_input()->set_shape(1, 9);
  bad.emplace_back(Request("x", kLongRows), Reason::kShapeMismatch);
  bad.back().first.mutable_input()->mutable_data()->pop_back();
  bad.emplace_back(Request("x", 1), Reason::kModuleNotTargeted);
  bad.back().first.mutable_projections(0)->mutable_module()->set_path("k_proj");
  bad.emplace_back(Request("x", 1), Reason::kInvalidField);
  bad.back().first.clear_projections();
  bad.emplace_back(Request("x", 1), Reason::kUnsupportedDtype);
  bad.back().first.set_output_dtype(v1::DATA_TYPE_I32);
  bad.emplace_back(Request("x", 1), Reason::kRevisionMismatch);
  bad.back().first.mutable_adapter()->set_revision(std::string(64, '0'));
  const auto good = Request("x", 1, 5);
  const auto expected = Unary(good);

  Stream stream(*server_);
  for (uint64_t i = 0; i < bad.size(); ++i) {
    SCOPED_TRACE(i);
    const auto unary = server_->Apply(bad[i].first);
    ASSERT_THAT(unary.status, IsRpcError(bad[i].second));
    const std::string rejected =
        fmt::format("adapterd_rejected_total{{reason=\"{}\"}}", ReasonName(bad[i].second));
    const double before = server_->Metric(rejected);
    EXPECT_TRUE(stream.Send(2 * i, bad[i].first));
    EXPECT_TRUE(stream.Send(2 * i + 1, good));
    const auto reply = stream.Next();
    ExpectError(reply, 2 * i, bad[i].second);
    EXPECT_EQ(reply->error().message(), unary.status.error_message());
    ExpectReply(stream.Next(), 2 * i + 1, expected);
    EXPECT_EQ(server_->Metric(rejected), before + 1);
  }
  v1::StreamProjectionsRequest empty;
  empty.set_request_id(99);
  EXPECT_TRUE(stream.Send(empty));
  ExpectError(stream.Next(), 99, Reason::kInvalidField);
  stream.HalfClose();
  EXPECT_THAT(stream.Status(), IsRpcOk());
  ExpectNothingLeft();
}

TEST_F(ProjectionStreamTest, MessagesOverTheLimitFailAloneInBothDirections) {
  TestServerOptions options;
  options.max_message_bytes = 10'000;
  Start(options);
  Load("x");
  auto large_reply = Request("x", 200);  // 6400 bytes, and twice 3200 back
  for (int i = 0; i < 3; ++i) AddPath(large_reply, kPath);
  const auto good = Request("x", 200);
  const auto expected = Unary(good);
  Stream stream(*server_);
  EXPECT_TRUE(stream.Send(1, Request("x", 400)));
  EXPECT_TRUE(stream.Send(2, large_reply));
  EXPECT_TRUE(stream.Send(3, good));
  ExpectError(stream.Next(), 1, Reason::kMessageTooLarge);
  ExpectError(stream.Next(), 2, Reason::kMessageTooLarge);
  ExpectReply(stream.Next(), 3, expected);
}

TEST_F(ProjectionStreamTest, ARequestThatFindsNoRoomFailsAlone) {
  TestServerOptions options;
  options.max_inflight_bytes = 10'000;
  Start(options);
  Load("x");
  const auto large = Request("x", 200);  // 6400 bytes
  const auto small = Request("x", 2);
  const auto expected = Unary(large);
  const auto expected_small = Unary(small);
  const double before = ComputedRows();
  BlockWorkers();
  Stream stream(*server_);
  EXPECT_TRUE(stream.Send(1, large));
  EXPECT_TRUE(stream.Send(2, large));
  EXPECT_TRUE(stream.Send(3, small));
  AwaitComputedRows(before + 2);
  EXPECT_THAT(server_->Apply(large).status, IsRpcError(Reason::kOverloaded));
  workers_gate_.Open();
  ExpectReply(stream.Next(), 1, expected);
  ExpectError(stream.Next(), 2, Reason::kOverloaded);
  ExpectReply(stream.Next(), 3, expected_small);
  EXPECT_TRUE(stream.Send(4, large));
  ExpectReply(stream.Next(), 4, expected);
  EXPECT_EQ(server_->Metric("adapterd_rejected_total{reason=\"OVERLOADED\"}"), 2);
}

TEST_F(ProjectionStreamTest, RequestsWaitForAnAdapterThatIsLoadingAndStayInOrder) {
  Load("y");
  const auto of_y = Unary(Request("y", 1, 3));
  const auto of_y_long = Unary(Request("y", kLongRows, 4));
  const double before = ComputedRows();
  BlockLoad("x");
  Stream stream(*server_);
  EXPECT_TRUE(stream.Send(1, Request("x", 1)));
  EXPECT_TRUE(stream.Send(2, Request("y", 1, 3)));
  EXPECT_TRUE(stream.Send(3, Request("y", kLongRows, 4)));
  AwaitComputedRows(before + 1 + kLongRows);
  sources_["x"].read_gate.Open();
  const auto first = stream.Next();
  ExpectReply(first, 1, Unary(Request("x", 1)));
  ExpectReply(stream.Next(), 2, of_y);
  ExpectReply(stream.Next(), 3, of_y_long);
}

TEST_F(ProjectionStreamTest, ALoadThatFailsFailsItsRequestsAlone) {
  FakeContent broken;
  broken.read_error = Error(Reason::kMalformedTensorFile, "broken");
  sources_.Put("x", broken);
  Load("y");
  const auto of_y = Unary(Request("y", 1));
  BlockLoad("x");
  Stream stream(*server_);
  EXPECT_TRUE(stream.Send(1, Request("x", 1)));
  EXPECT_TRUE(stream.Send(2, Request("y", 1)));
  sources_["x"].read_gate.Open();
  const auto reply = stream.Next();
  ASSERT_TRUE(reply && reply->has_error());
  EXPECT_EQ(reply->request_id(), 1u);
  ExpectReply(stream.Next(), 2, of_y);
}

TEST_F(ProjectionStreamTest, AHalfCloseLeavesWhatIsInFlight) {
  Load("x");
  const auto expected = Unary(Request("x", kLongRows));
  BlockWorkers();
  Stream stream(*server_);
  for (uint64_t i = 0; i < 20; ++i) EXPECT_TRUE(stream.Send(i, Request("x", kLongRows)));
  stream.HalfClose();
  AwaitHandles("x", 20);
  workers_gate_.Open();
  for (uint64_t i = 0; i < 20; ++i) ExpectReply(stream.Next(), i, expected);
  EXPECT_THAT(stream.Status(), IsRpcOk());
  ExpectNothingLeft();
}

TEST_F(ProjectionStreamTest, StreamsAreCountedAsOneCallEach) {
  Load("x");
  for (int i = 0; i < 3; ++i) {
    Stream stream(*server_);
    EXPECT_TRUE(stream.Send(1, Request("x", 1)));
    EXPECT_TRUE(stream.Send(2, Request("nobody", 1)));
    stream.HalfClose();
    EXPECT_THAT(stream.Status(), IsRpcOk());
  }
  server_->AwaitNoCalls();
  const std::string method =
      "grpc_method=\"StreamProjections\",grpc_service=\"adapterd.v1.ProjectionService\"}";
  EXPECT_EQ(server_->Metric("grpc_server_started_total{" + method), 3);
  EXPECT_EQ(server_->Metric("grpc_server_handled_total{grpc_code=\"OK\"," + method), 3);
}

// A stream of whatever bytes.
class RawStream {
 public:
  explicit RawStream(TestServer& server) : stub_(server.channel()) {
    call_ =
        stub_.PrepareCall(&context_, "/adapterd.v1.ProjectionService/StreamProjections", &queue_);
    call_->StartCall(nullptr);
    Await();
  }
  ~RawStream() {
    queue_.Shutdown();
    while (Await()) {
    }
  }

  void Send(const std::string& bytes) {
    call_->Write(wire::InPieces(bytes, 1, 7), nullptr);
    Await();
  }

  std::optional<v1::StreamProjectionsResponse> Next() {
    grpc::ByteBuffer buffer;
    call_->Read(&buffer, nullptr);
    v1::StreamProjectionsResponse response;
    if (!Await() || !response.ParseFromString(wire::BytesOf(buffer))) return std::nullopt;
    return response;
  }

  grpc::Status Status() {
    grpc::Status status;
    call_->Finish(&status, nullptr);
    Await();
    return status;
  }

 private:
  // The next operation; whether it succeeded.
  bool Await() {
    void* tag = nullptr;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }

  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

std::string Message(uint64_t id, const v1::ApplyProjectionRequest& request) {
  return wire::Int(1, id) + wire::Bytes(15, request.SerializeAsString());
}

TEST_F(ProjectionStreamTest, WhatDoesNotParseEndsTheStreamAfterTheRepliesBeforeIt) {
  Load("x");
  const auto expected = Unary(Request("x", kLongRows));
  const double before = ComputedRows();
  for (const std::string& bytes :
       {std::string("\xff\xff"), wire::Bytes(15, "\x7a"), wire::Tag(15, wire::kBytes),
        wire::Bytes(15, wire::Bytes(15, wire::Tag(15, wire::kBytes) + wire::Varint(9))),
        wire::Tag(7, wire::kEnd), wire::Bytes(15, wire::Bytes(1, wire::Bytes(1, "\xff")))}) {
    BlockWorkers();
    RawStream stream(*server_);
    stream.Send(Message(1, Request("x", kLongRows)));
    stream.Send(Message(2, Request("x", kLongRows)));
    stream.Send(bytes);
    AwaitHandles("x", 2);
    workers_gate_.Open();
    ExpectReply(stream.Next(), 1, expected);
    ExpectReply(stream.Next(), 2, expected);
    EXPECT_FALSE(stream.Next());
    const grpc::Status status = stream.Status();
    EXPECT_THAT(status, IsRpcError(Reason::kInvalidField));
    EXPECT_THAT(status, HasRpcMessage(::testing::HasSubstr("StreamProjectionsRequest")));
  }
  EXPECT_EQ(ComputedRows(), before + 12 * kLongRows);
  ExpectNothingLeft();
}

TEST_F(ProjectionStreamTest, BytesThatMeanTheSameAreAnsweredTheSame) {
  Load("x");
  const auto request = Request("x", 2);
  const auto expected = Unary(request);
  const std::string input = request.input().SerializeAsString();
  v1::ApplyProjectionRequest rest = request;
  rest.clear_input();
  RawStream stream(*server_);
  stream.Send(wire::Bytes(15, wire::Bytes(15, input)) + wire::Bytes(15, rest.SerializeAsString()) +
              wire::Int(1, 1));
  ExpectReply(stream.Next(), 1, expected);
  stream.Send(wire::Int(1, 9) + wire::Group(30, wire::Bytes(15, input)) +
              wire::Bytes(15, wire::Bytes(15, wire::Bytes(15, "first")) +
                                  request.SerializeAsString() + wire::Bytes(77, "unknown")) +
              wire::Tag(1, wire::kVarint, 3) + wire::Varint(2, 9));
  ExpectReply(stream.Next(), 2, expected);
}

}  // namespace
}  // namespace adapterd
