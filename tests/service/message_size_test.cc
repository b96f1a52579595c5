// Messages over the limit, in both directions.
#include <grpcpp/grpcpp.h>

#include "tests/service/projection_fixture.h"

namespace adapterd {
namespace {

constexpr int64_t kLimit = 100'000;

class MessageSizeTest : public ::testing::Test {
 protected:
  MessageSizeTest() : server_(Options()) {
    PeftBuilder(1).Add("q_proj", 2, 4, 1000).Write(server_.dir(), "x");
    EXPECT_THAT(server_.Load("x", "x").status, IsRpcOk());
  }

  static TestServerOptions Options() {
    TestServerOptions options;
    options.max_message_bytes = kLimit;
    return options;
  }

  static v1::ApplyProjectionRequest Request(int64_t rows) {
    v1::ApplyProjectionRequest request;
    *request.mutable_input() = DataTensor(DType::kF16, {rows, 4}, std::vector<float>(rows * 4, 1));
    *request.mutable_adapter() = Ref("x");
    AddPath(request, "q_proj");
    return request;
  }

  TestServer server_;
};

TEST_F(MessageSizeTest, ARequestOverTheLimitIsRefusedWithTheNumbers) {
  const v1::ApplyProjectionRequest request = Request(20'000);
  const auto reply = server_.Apply(request);
  EXPECT_THAT(reply.status, IsRpcError(Reason::kMessageTooLarge));
  EXPECT_THAT(reply.status, HasRpcMetadata("expected", std::to_string(kLimit)));
  EXPECT_THAT(reply.status, HasRpcMetadata("actual", std::to_string(request.ByteSizeLong())));
  EXPECT_EQ(server_.inflight_bytes(), 0);
}

TEST_F(MessageSizeTest, EveryRpcHasTheLimit) {
  const std::string long_text(kLimit, 'a');
  v1::GetAdapterRequest get;
  get.set_name(long_text);
  EXPECT_THAT(server_.Get(get).status, IsRpcError(Reason::kMessageTooLarge));
  EXPECT_THAT(server_.Unload(long_text).status, IsRpcError(Reason::kMessageTooLarge));
  EXPECT_THAT(server_.Load("y", long_text).status, IsRpcError(Reason::kMessageTooLarge));
  v1::MergeRequest merge;
  merge.mutable_weight()->set_data(long_text);
  EXPECT_THAT(server_.Merge(merge).status, IsRpcError(Reason::kMessageTooLarge));
}

TEST_F(MessageSizeTest, AReplyOverTheLimitIsRefusedBeforeItIsMade) {
  EXPECT_THAT(server_.Apply(Request(49)).status, IsRpcOk());  // 98,000 bytes
  const auto reply = server_.Apply(Request(51));
  EXPECT_THAT(reply.status, IsRpcError(Reason::kMessageTooLarge));
  EXPECT_THAT(reply.status, HasRpcMetadata("actual", "102000"));
  v1::ApplyProjectionRequest twice = Request(49);
  AddPath(twice, "q_proj");
  EXPECT_THAT(server_.Apply(twice).status, IsRpcError(Reason::kMessageTooLarge));
  EXPECT_EQ(server_.inflight_bytes(), 0);
  EXPECT_EQ(server_.registry().Get("x")->in_flight, 0);
}

}  // namespace
}  // namespace adapterd
