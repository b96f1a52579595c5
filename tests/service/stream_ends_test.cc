// Streams whose client leaves or does not read, and streams of a server that leaves.
#include <thread>

#include "service/projection_stream.h"
#include "tests/service/stream_fixture.h"

namespace adapterd {
namespace {

class StreamEndsTest : public StreamFixture {};

// The client has written as long as the server takes, and never read.
class StuckClient {
 public:
  StuckClient(TestServer& server, int messages, const v1::ApplyProjectionRequest& request)
      : stream_(server), writer_([this, messages, request] {
          for (int i = 0; i < messages && stream_.Send(i, request); ++i) ++written_;
          stream_.HalfClose();
        }) {}
  ~StuckClient() {
    stream_.Cancel();
    if (writer_.joinable()) writer_.join();
  }

  int written() const { return written_; }
  Stream& stream() { return stream_; }
  grpc::Status Status() {
    while (stream_.Next()) {
    }
    writer_.join();  // it uses the call, which Status lets go
    return stream_.Status();
  }

 private:
  Stream stream_;
  std::atomic<int> written_{0};
  std::thread writer_;
};

TEST_F(StreamEndsTest, ACancelledStreamLeavesNothingBehind) {
  Load("x");
  const double before = ComputedRows();
  BlockWorkers();
  BlockLoad("y");
  {
    Stream stream(*server_);
    for (uint64_t i = 0; i < 20; ++i) {
      EXPECT_TRUE(stream.Send(i, Request("x", kLongRows)));  // in the queue
      EXPECT_TRUE(stream.Send(i, Request("y", 1)));          // for the load
      EXPECT_TRUE(stream.Send(i, Request("x", 1)));          // computed, and not sent
    }
    AwaitHandles("x", 20);
    AwaitComputedRows(before + 20);
    EXPECT_GT(server_->inflight_bytes(), 0);
    EXPECT_GT(server_->buffers().used_bytes(), 0);
    stream.Cancel();
    EXPECT_EQ(stream.Status().error_code(), grpc::StatusCode::CANCELLED);
    // The server is told: those that waited for the load are in the queue to be answered.
    SpinUntil([&] { return server_->workers().queue_length() == 40; });
  }
  ExpectNothingLeft();
  EXPECT_EQ(ComputedRows(), before + 20) << "what nobody waits for is not computed";
}

TEST_F(StreamEndsTest, AStreamThatIsCancelledWhileItIsComputedLeavesNothingBehind) {
  Load("x");
  for (int round = 0; round < 30; ++round) {
    Stream stream(*server_);
    for (uint64_t i = 0; i < 60; ++i) {
      EXPECT_TRUE(stream.Send(i, Request("x", i % 2 == 0 ? 200 : 1)));
    }
    for (int i = 0; i < round; ++i) EXPECT_TRUE(stream.Next());
    stream.Cancel();
  }
  ExpectNothingLeft();
}

// Its 64 requests wait for the first one's worker, which then has both a reply to send and room to
// read on, while the client leaves.
TEST_F(StreamEndsTest, AStreamThatIsCancelledWhenItCanGoOnLeavesNothingBehind) {
  Load("x");
  for (int round = 0; round < 30; ++round) {
    const double before = ComputedRows();
    BlockWorkers();
    Stream stream(*server_);
    EXPECT_TRUE(stream.Send(0, Request("x", kLongRows)));
    for (uint64_t i = 1; i < kMaxStreamedRequests; ++i) {
      EXPECT_TRUE(stream.Send(i, Request("x", 1)));
    }
    AwaitComputedRows(before + kMaxStreamedRequests - 1);
    workers_gate_.Open();
    EXPECT_TRUE(stream.Next());
    stream.Cancel();
  }
  ExpectNothingLeft();
}

TEST_F(StreamEndsTest, ADeadlineEndsAStreamAndWhatWaitsInIt) {
  BlockLoad("x");
  Stream stream(*server_, absl::Now() + absl::Milliseconds(30));
  stream.Send(1, Request("x", 1));
  EXPECT_EQ(stream.Status().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ExpectNothingLeft();  // while the load still runs
  EXPECT_EQ(ComputedRows(), 0);
}

TEST_F(StreamEndsTest, ADrainEndsIdleStreamsAndLetsNoMoreIn) {
  Load("x");
  Stream fresh(*server_);
  EXPECT_TRUE(fresh.Send(1, Request("x", 1)));  // it has begun
  EXPECT_TRUE(fresh.Next());
  server_->streams().End();
  EXPECT_THAT(fresh.Status(), IsRpcError(Reason::kDraining));
  Stream late(*server_);
  EXPECT_THAT(late.Status(), IsRpcError(Reason::kDraining));
  EXPECT_TRUE(server_->AwaitNoCalls(kTestPatience));
  Stream later(*server_);
  EXPECT_THAT(later.Status(), IsRpcError(Reason::kDraining));
}

TEST_F(StreamEndsTest, ADrainAnswersWhatWasReadBefore) {
  Load("x");
  const auto expected = Unary(Request("x", kLongRows));
  BlockWorkers();
  Stream stream(*server_);
  for (uint64_t i = 0; i < 10; ++i) EXPECT_TRUE(stream.Send(i, Request("x", kLongRows)));
  AwaitHandles("x", 10);
  server_->streams().End();
  workers_gate_.Open();
  for (uint64_t i = 0; i < 10; ++i) ExpectReply(stream.Next(), i, expected);
  EXPECT_FALSE(stream.Next());
  EXPECT_THAT(stream.Status(), IsRpcError(Reason::kDraining));
  ExpectNothingLeft();
}

TEST_F(StreamEndsTest, AClientThatDoesNotReadIsHeldBackAndLosesNothing) {
  Load("x");
  constexpr int kMessages = 300;
  const auto expected = Unary(Request("x", 1));
  const double before = ComputedRows();
  StuckClient client(*server_, kMessages, Request("x", 1));
  // In this process a reply is taken when it is read, so one is on its way and the rest waits.
  constexpr double kMost = kMaxStreamedRequests + 1;
  AwaitComputedRows(before + kMost);
  SpinUntil([&] { return server_->inflight_bytes() == 0; });
  absl::SleepFor(absl::Milliseconds(20));  // in which it might go wrong
  EXPECT_EQ(ComputedRows(), before + kMost);
  EXPECT_LT(client.written(), kMost + 5);
  for (int i = 0; i < kMessages; ++i) ExpectReply(client.stream().Next(), i, expected);
  EXPECT_THAT(client.Status(), IsRpcOk());
  ExpectNothingLeft();
}

// One reply that is not taken, and many: `rest` waits behind it.
class StuckStreamTest : public StreamEndsTest, public ::testing::WithParamInterface<int> {};

TEST_P(StuckStreamTest, IsCutOffByADrain) {
  Load("x");
  const double before = ComputedRows();
  StuckClient client(*server_, GetParam(), Request("x", 1));
  AwaitComputedRows(before + std::min<double>(GetParam(), kMaxStreamedRequests + 1));
  server_->streams().End();
  EXPECT_FALSE(server_->AwaitNoCalls(absl::Milliseconds(20)));
  server_->streams().Cut();
  EXPECT_TRUE(server_->AwaitNoCalls(kTestPatience));
  EXPECT_EQ(client.Status().error_code(), grpc::StatusCode::CANCELLED);
  ExpectNothingLeft();
}

INSTANTIATE_TEST_SUITE_P(Replies, StuckStreamTest, ::testing::Values(1, 2, 10, 1000));

TEST_F(StreamEndsTest, AThousandStreamsLeaveNothingBehind) {
  Load("x");
  const auto expected = Unary(Request("x", 1));
  for (int i = 0; i < 1000; ++i) {
    Stream stream(*server_);
    if (i % 5 == 0) continue;  // gone before it began
    EXPECT_TRUE(stream.Send(i, Request("x", 1)));
    if (i % 5 == 1) continue;  // gone with a request in flight
    ExpectReply(stream.Next(), i, expected);
    if (i % 5 == 2) continue;  // gone while idle
    stream.HalfClose();
    if (i % 5 == 3) continue;
    EXPECT_THAT(stream.Status(), IsRpcOk());
  }
  ExpectNothingLeft();
  EXPECT_TRUE(server_->AwaitNoCalls(kTestPatience));
}

TEST_F(StreamEndsTest, ThereAreAtMostSoManyStreams) {
  Load("x");
  std::vector<std::unique_ptr<Stream>> streams;
  for (size_t i = 0; i < kMaxProjectionStreams; ++i) {
    streams.push_back(std::make_unique<Stream>(*server_));
    ASSERT_TRUE(streams.back()->Send(i, Request("x", 1)));
    ASSERT_TRUE(streams.back()->Next());
  }
  Stream one_more(*server_);
  EXPECT_THAT(one_more.Status(), IsRpcError(Reason::kOverloaded));
  // When one leaves, another may come.
  streams.pop_back();
  SpinUntil([&] {
    Stream again(*server_);
    return again.Send(1, Request("x", 1)) && again.Next();
  });
  streams.clear();
  ExpectNothingLeft();
}

TEST_F(StreamEndsTest, ManyStreamsAtOnceEndAsTheirClientsPlease) {
  Load("x");
  std::vector<std::thread> clients;
  for (int t = 0; t < 4; ++t) {
    clients.emplace_back([&, t] {
      TestRandom random(t);
      for (int i = 0; i < 40; ++i) {
        StuckClient client(*server_, 20 + random.Below(150), Request("x", 1 + random.Below(100)));
        const int reads = random.Below(100);
        for (int k = 0; k < reads && client.stream().Next(); ++k) {
        }
        if (random.Below(2) == 0) client.Status();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  ExpectNothingLeft();
}

TEST_F(StreamEndsTest, AShutdownEndsStreamsWithRequestsInFlight) {
  Load("x");
  BlockWorkers();
  Stream stream(*server_);
  for (uint64_t i = 0; i < 10; ++i) EXPECT_TRUE(stream.Send(i, Request("x", kLongRows)));
  AwaitHandles("x", 10);
  std::thread shutdown([&] { server_->Shutdown(); });
  EXPECT_FALSE(stream.Status().ok());
  workers_gate_.Open();
  shutdown.join();
  ExpectNothingLeft();
}

}  // namespace
}  // namespace adapterd
