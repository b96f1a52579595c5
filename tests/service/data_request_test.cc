// What becomes of requests of the data plane that nobody waits for any more, or that are late.
#include "service/data_request.h"

#include <google/protobuf/unknown_field_set.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/service/stream_fixture.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

// Notes the steps that it goes through, and stops in them where a test wants it to.
class NotedRequest final : public DataRequest {
 public:
  NotedRequest(DataPlane& plane, absl::Time deadline, std::vector<std::string> adapters = {})
      : DataRequest(plane, deadline), adapters_(std::move(adapters)) {}

  // Each step's first letter, as far as it came: "PrCA" has been answered.
  std::string steps() const {
    absl::MutexLock lock(&mutex_);
    return steps_;
  }
  // Waits for it.
  absl::Status answer() {
    absl::MutexLock lock(&mutex_);
    AwaitOrThrow(mutex_, absl::Condition(&answered_));
    return answer_;
  }

  int64_t flops = 0;
  std::function<absl::Status()> on_compute = [] { return absl::OkStatus(); };

 private:
  absl::StatusOr<Needs> Parse() override {
    Note('P');
    Needs needs;
    for (const std::string& name : adapters_) needs.adapters.push_back({name, ""});
    return needs;
  }
  absl::StatusOr<int64_t> Prepare(const std::vector<AdapterHandle>&) override {
    Note('r');
    return flops;
  }
  absl::Status Compute() override {
    Note('C');
    return on_compute();
  }
  void Answer(const absl::Status& status) override {
    Release();
    Note('A');
    absl::MutexLock lock(&mutex_);
    answer_ = status;
    answered_ = true;
  }

  void Note(char step) {
    absl::MutexLock lock(&mutex_);
    steps_ += step;
  }

  const std::vector<std::string> adapters_;
  mutable absl::Mutex mutex_;
  std::string steps_ ABSL_GUARDED_BY(mutex_);
  absl::Status answer_ ABSL_GUARDED_BY(mutex_);
  bool answered_ ABSL_GUARDED_BY(mutex_) = false;
};

class DataRequestTest : public StreamFixture {
 protected:
  std::shared_ptr<NotedRequest> MakeRequest(std::vector<std::string> adapters = {},
                                            absl::Time deadline = absl::InfiniteFuture()) {
    return std::make_shared<NotedRequest>(server_->data_plane(), deadline, std::move(adapters));
  }
  int64_t long_flops() { return server_->data_plane().short_flops + 1; }
};

TEST_F(DataRequestTest, AShortOneNeedsNoWorker) {
  Load("x");
  BlockWorkers();
  const auto request = MakeRequest({"x"});
  request->flops = server_->data_plane().short_flops;
  std::thread::id computed_on;
  request->on_compute = [&] {
    computed_on = std::this_thread::get_id();
    return absl::OkStatus();
  };
  request->Start(kShortRequestBytes);
  EXPECT_EQ(request->steps(), "PrCA");
  EXPECT_EQ(computed_on, std::this_thread::get_id());
  ExpectNothingLeft();
}

TEST_F(DataRequestTest, LongWorkIsForAWorkerAndManyBytesAreAllThrough) {
  BlockWorkers();
  const auto computed = MakeRequest();
  computed->flops = long_flops();
  computed->Start(1);
  EXPECT_EQ(computed->steps(), "Pr");
  const auto copied = MakeRequest();
  copied->Start(kShortRequestBytes + 1);
  EXPECT_EQ(copied->steps(), "");
  EXPECT_EQ(server_->inflight_bytes(), kShortRequestBytes + 2);
  workers_gate_.Open();
  EXPECT_THAT(computed->answer(), IsOk());
  EXPECT_THAT(copied->answer(), IsOk());
  EXPECT_EQ(computed->steps(), "PrCA");
  EXPECT_EQ(copied->steps(), "PrCA");
  ExpectNothingLeft();
}

TEST_F(DataRequestTest, OneThatIsLateIsNotBegun) {
  const auto request = MakeRequest({}, absl::Now() - absl::Seconds(1));
  request->Start(1);
  EXPECT_EQ(request->answer().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(request->steps(), "A");
  ExpectNothingLeft();
}

TEST_F(DataRequestTest, OneThatIsLateInTheQueueIsNotComputed) {
  BlockWorkers();
  const absl::Time deadline = absl::Now() + absl::Milliseconds(20);
  const auto computed = MakeRequest({}, deadline);
  computed->flops = long_flops();
  computed->Start(1);
  const auto copied = MakeRequest({}, deadline);
  copied->Start(kShortRequestBytes + 1);
  const auto in_time = MakeRequest();
  in_time->flops = long_flops();
  in_time->Start(1);
  absl::SleepFor(deadline - absl::Now());
  workers_gate_.Open();
  EXPECT_EQ(computed->answer().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(copied->answer().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(in_time->answer(), IsOk());
  EXPECT_EQ(computed->steps().find('C'), std::string::npos);
  EXPECT_EQ(copied->steps(), "A");
  ExpectNothingLeft();
}

TEST_F(DataRequestTest, OneThatIsCancelledIsAnsweredOnceWhereverItWas) {
  Load("y");
  BlockLoad("x");
  BlockWorkers();
  const auto before = MakeRequest({"y"});
  before->flops = long_flops();
  before->Cancel();
  before->Start(1);
  const auto queued = MakeRequest({"y"});
  queued->flops = long_flops();
  queued->Start(1);
  const auto waiting = MakeRequest({"x", "y"});
  waiting->Start(1);
  const auto unread = MakeRequest({"y"});
  unread->Start(kShortRequestBytes + 1);
  for (const auto& request : {queued, waiting, unread}) {
    request->Cancel();
    request->Cancel();
  }
  workers_gate_.Open();  // while the load still runs
  for (const auto& request : {before, queued, waiting, unread}) {
    EXPECT_EQ(request->answer().code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(request->steps().find('C'), std::string::npos) << request->steps();
    request->Cancel();
  }
  ExpectNothingLeft();
  for (const auto& request : {before, queued, waiting, unread}) {
    EXPECT_EQ(request->steps().find('A'), request->steps().size() - 1);
  }
}

TEST_F(DataRequestTest, WhatItsStepsThrowIsItsAnswer) {
  const auto lacks = MakeRequest();
  lacks->on_compute = []() -> absl::Status { throw std::bad_alloc(); };
  lacks->Start(1);
  EXPECT_THAT(lacks->answer(), HasReason(Reason::kMemoryBudgetExceeded));
  const auto fails = MakeRequest();
  fails->on_compute = []() -> absl::Status { throw std::runtime_error("broken"); };
  fails->Start(1);
  EXPECT_EQ(fails->answer().code(), absl::StatusCode::kInternal);
  ExpectNothingLeft();
}

// Unary calls that are all under way at once.
class ManyCallsTest : public StreamFixture {
 protected:
  static constexpr int kCalls = 1000;

  void Send(const v1::ApplyProjectionRequest& request,
            absl::Time deadline = absl::InfiniteFuture()) {
    Call& call = *calls_.emplace_back(std::make_unique<Call>());
    call.request = request;
    if (deadline != absl::InfiniteFuture()) {
      call.context.set_deadline(absl::ToChronoTime(deadline));
    }
    server_->projections().async()->ApplyProjection(
        &call.context, &call.request, &call.response,
        [this, &call](grpc::Status status) { Done(call, std::move(status)); });
  }

  void CancelAll() {
    for (const auto& call : calls_) call->context.TryCancel();
  }

  // How many ended with each code, once all have.
  std::map<grpc::StatusCode, int> Codes() {
    absl::MutexLock lock(&mutex_);
    AwaitOrThrow(mutex_, absl::Condition(this, &ManyCallsTest::AllAreDone));
    std::map<grpc::StatusCode, int> codes;
    for (const auto& call : calls_) ++codes[call->status.error_code()];
    return codes;
  }

  void AwaitFirst() {
    absl::MutexLock lock(&mutex_);
    AwaitOrThrow(mutex_, absl::Condition(
                             +[](size_t* done) { return *done > 0; }, &done_));
  }

  double HandledAs(const std::string& code) {
    const std::string series = "grpc_server_handled_total{grpc_code=\"" + code +
                               "\",grpc_method=\"ApplyProjection\",grpc_service=\"adapterd.v1."
                               "ProjectionService\"}";
    return server_->MetricsText().find(series) == std::string::npos ? 0 : server_->Metric(series);
  }

 private:
  struct Call {
    grpc::ClientContext context;
    v1::ApplyProjectionRequest request;
    v1::ApplyProjectionResponse response;
    grpc::Status status;
  };

  void Done(Call& call, grpc::Status status) {
    absl::MutexLock lock(&mutex_);
    call.status = std::move(status);
    ++done_;
  }
  bool AllAreDone() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return done_ == calls_.size(); }

  std::vector<std::unique_ptr<Call>> calls_;  // of the test's thread, but for each one's status
  absl::Mutex mutex_;
  size_t done_ ABSL_GUARDED_BY(mutex_) = 0;
};

TEST_F(ManyCallsTest, ThatAreCancelledInTheQueueAndInFrontOfALoadAreNotComputed) {
  Load("x");
  BlockLoad("y");
  BlockWorkers();
  for (int i = 0; i < kCalls; ++i) {
    Send(i % 2 == 0 ? Request("x", kLongRows) : Request("y", i % 4 == 1 ? 1 : kLongRows));
  }
  AwaitHandles("x", kCalls / 2);
  CancelAll();
  EXPECT_THAT(Codes(), ::testing::ElementsAre(std::pair(grpc::StatusCode::CANCELLED, kCalls)));
  // All are told once those that waited for the load are in the queue, to be answered.
  SpinUntil([&] { return server_->workers().queue_length() == kCalls; });
  ExpectNothingLeft();
  EXPECT_EQ(ComputedRows(), 0);
  EXPECT_EQ(HandledAs("Canceled"), kCalls);
  sources_["y"].read_gate.Open();
  SpinUntil([&] { return server_->registry().Get("y")->in_flight == 0; });
  EXPECT_THAT(server_->Apply(Request("x", 1)).status, IsRpcOk());
}

TEST_F(ManyCallsTest, ThatAreCancelledWhileTheyAreComputedLeaveNothingBehind) {
  Load("x");
  BlockLoad("y");
  for (int i = 0; i < kCalls; ++i) {
    Send(Request(i % 3 == 0 ? "y" : "x", i % 2 == 0 ? 1000 : 1));
  }
  AwaitComputedRows(1000);
  AwaitFirst();
  CancelAll();
  const auto codes = Codes();
  for (const auto& [code, count] : codes) {
    EXPECT_TRUE(code == grpc::StatusCode::OK || code == grpc::StatusCode::CANCELLED) << code;
  }
  EXPECT_GE(codes.at(grpc::StatusCode::CANCELLED), kCalls / 3);  // at least those of the load
  EXPECT_GT(codes.at(grpc::StatusCode::OK), 0);
  ExpectNothingLeft();
}

TEST_F(ManyCallsTest, ThatAreLateAreNotComputed) {
  Load("x");
  BlockWorkers();
  const absl::Time deadline = absl::Now() + absl::Milliseconds(100);
  for (int i = 0; i < 100; ++i) Send(Request("x", kLongRows), deadline);
  EXPECT_THAT(Codes(), ::testing::ElementsAre(std::pair(grpc::StatusCode::DEADLINE_EXCEEDED, 100)));
  ExpectNothingLeft();
  EXPECT_EQ(ComputedRows(), 0);
  EXPECT_EQ(server_->Metric("adapterd_apply_stage_seconds_count{stage=\"compute\"}"), 0);
  EXPECT_EQ(HandledAs("DeadlineExceeded"), 100);
}

class DataMergeTest : public StreamFixture {};

TEST_F(DataMergeTest, ABiasThatIsKeptHasItsTypeAndNothingOfTheClients) {
  Load("x");
  v1::MergeRequest request;
  request.mutable_module()->set_path(kPath);
  *request.add_adapters() = Ref("x");
  *request.mutable_weight() = DataTensor(DType::kF16, {4, 8}, std::vector<float>(32, 1));
  const v1::Tensor with_data = DataTensor(DType::kBF16, {4}, {1, 2, 3, 4});
  v1::Tensor readable = ReadableTensor(DType::kF32, {4}, {1, 2, 3, 4});
  for (const v1::Tensor& bias : {with_data, readable}) {
    *request.mutable_bias() = bias;
    if (bias.f32_values_size() > 0) request.mutable_bias()->clear_dtype();
    request.mutable_bias()
        ->GetReflection()
        ->MutableUnknownFields(request.mutable_bias())
        ->AddGroup(90)
        ->AddLengthDelimited(15, "not a tensor's");
    const auto reply = server_->Merge(request);
    ASSERT_THAT(reply.status, IsRpcOk());
    EXPECT_EQ(reply->bias().SerializeAsString(), bias.SerializeAsString());
  }
  ExpectNothingLeft();
}

}  // namespace
}  // namespace adapterd
