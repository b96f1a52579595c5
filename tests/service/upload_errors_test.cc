// Uploads that fail, one way after the other: each has its reason, and leaves nothing.
#include "tests/service/upload_fixture.h"
#include "tests/testing/fake_sources.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr int64_t kMaxMessageBytes = 10'000;
constexpr int64_t kMaxUploadBytes = 20'000;

class UploadErrorsTest : public UploadFixture {
 protected:
  explicit UploadErrorsTest(TestServerOptions options = {})
      : UploadFixture(WithLimits(std::move(options))) {}

  static TestServerOptions WithLimits(TestServerOptions options) {
    options.max_message_bytes = kMaxMessageBytes;
    options.max_upload_bytes = kMaxUploadBytes;
    return options;
  }

  Response Send(const std::vector<v1::UploadAdapterRequest>& messages) {
    UploadStream stream(server_);
    for (const v1::UploadAdapterRequest& message : messages) {
      if (!stream.Write(message)) return stream.Await();
    }
    return stream.Close();
  }
};

TEST_F(UploadErrorsTest, MessagesOutOfPlace) {
  const v1::UploadAdapterRequest start = StartMessage("x");
  const v1::UploadAdapterRequest chunk = ChunkMessage("adapter_config.json", "{}");
  const v1::UploadAdapterRequest other = ChunkMessage("adapter_model.safetensors", "");
  struct Case {
    std::vector<v1::UploadAdapterRequest> messages;
    std::string field;
    std::string message;
  };
  const std::vector<Case> cases = {
      {{}, "start", "expected as the first message, found the end"},
      {{chunk}, "start", "expected as the first message, found chunk"},
      {{start}, "chunk.file_name", "no file"},
      {{start, start}, "start", "found a second one"},
      {{start, chunk, start}, "start", "found a second one"},
      {{v1::UploadAdapterRequest()}, "content", "found neither"},
      {{start, v1::UploadAdapterRequest()}, "content", "found neither"},
      {{start, chunk, other, chunk}, "chunk.file_name", "cannot be continued"},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.message);
    const Response reply = Send(each.messages);
    EXPECT_THAT(reply.status, IsRpcError(Reason::kInvalidField));
    EXPECT_THAT(reply.status, HasRpcMetadata("field", each.field));
    EXPECT_THAT(reply.status, HasRpcMessage(HasSubstr(each.message)));
    ExpectNothingLeft();
  }
}

TEST_F(UploadErrorsTest, FileNamesThatArePaths) {
  for (const std::string& name :
       {std::string(), std::string("../adapter_config.json"), std::string("/adapter_config.json"),
        std::string("a/b"), std::string(".."), std::string("a\0b", 3)}) {
    SCOPED_TRACE(name);
    const Response reply = Send({StartMessage("x"), ChunkMessage(name, "{}")});
    EXPECT_THAT(reply.status, IsRpcError(Reason::kInvalidField));
    EXPECT_THAT(reply.status, HasRpcMetadata("field", "chunk.file_name"));
    ExpectNothingLeft();
  }
}

TEST_F(UploadErrorsTest, StartsThatAreRefused) {
  struct Case {
    std::function<void(v1::UploadStart&)> change;
    Reason reason;
    std::string field;
  };
  const std::vector<Case> cases = {
      {[](auto& s) { s.set_name("a/b"); }, Reason::kInvalidField, "name"},
      {[](auto& s) { s.set_name(""); }, Reason::kInvalidField, "name"},
      {[](auto& s) { s.set_expected_digest("12"); }, Reason::kInvalidField, "expected_digest"},
      {[](auto& s) { (*s.mutable_labels())["\n"] = ""; }, Reason::kInvalidField, "labels"},
      {[](auto& s) { s.set_hosted_base("a/b"); }, Reason::kInvalidField, "hosted_base"},
      {[](auto& s) { s.mutable_head_counts(); }, Reason::kInvalidField,
       "head_counts.num_attention_heads"},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.field);
    v1::UploadAdapterRequest start = StartMessage("x");
    each.change(*start.mutable_start());
    const Response reply = Upload(start, AdapterFiles(1));
    EXPECT_THAT(reply.status, IsRpcError(each.reason));
    EXPECT_THAT(reply.status, HasRpcMetadata("field", "start." + each.field));
    ExpectNothingLeft();
  }
}

TEST_F(UploadErrorsTest, WhatIsNoAdapterIsRefusedAndRemoved) {
  const UploadFiles good = AdapterFiles(1);
  const auto& [config, weights] = std::pair(good[0].second, good[1].second);
  struct Case {
    UploadFiles files;
    Reason reason;
  };
  const std::vector<Case> cases = {
      {{{"adapter_config.json", config}}, Reason::kSourceNotFound},
      {{{"adapter_model.safetensors", weights}}, Reason::kSourceNotFound},
      {{{"README.md", "hello"}}, Reason::kSourceNotFound},
      {{{"adapter_config.json", config}, {"adapter_model.bin", "x"}}, Reason::kUnsafeFormat},
      {{{"adapter_config.json", "{"}, {"adapter_model.safetensors", weights}},
       Reason::kMalformedConfig},
      {{{"adapter_config.json", config},
        {"adapter_model.safetensors", weights.substr(0, weights.size() - 1)}},
       Reason::kMalformedTensorFile},
  };
  for (const Case& each : cases) {
    const Response reply = Upload("x", each.files);
    EXPECT_THAT(reply.status, IsRpcError(each.reason));
    ExpectNothingLeft();
  }
}

TEST_F(UploadErrorsTest, OptionsThatDoNotFitWhatArrived) {
  v1::UploadAdapterRequest digest = StartMessage("x");
  digest.mutable_start()->set_expected_digest(std::string(64, '0'));
  EXPECT_THAT(Upload(digest, AdapterFiles(1)).status, IsRpcError(Reason::kDigestMismatch));
  ExpectNothingLeft();
  v1::UploadAdapterRequest base = StartMessage("x");
  base.mutable_start()->set_base_model("another");
  EXPECT_THAT(Upload(base, AdapterFiles(1)).status, IsRpcError(Reason::kBaseModelMismatch));
  ExpectNothingLeft();
}

TEST_F(UploadErrorsTest, AMessageOverTheLimit) {
  const Response reply =
      Send({StartMessage("x"), ChunkMessage("a", std::string(kMaxMessageBytes, 'x'))});
  EXPECT_THAT(reply.status, IsRpcError(Reason::kMessageTooLarge));
  EXPECT_THAT(reply.status, HasRpcMetadata("expected", std::to_string(kMaxMessageBytes)));
  ExpectNothingLeft();
}

TEST_F(UploadErrorsTest, AnUploadOverTheLimit) {
  const std::string piece(8000, 'x');
  const Response reply = Send({StartMessage("x"), ChunkMessage("a", piece),
                               ChunkMessage("b", piece), ChunkMessage("b", piece)});
  EXPECT_THAT(reply.status, IsRpcError(Reason::kMessageTooLarge));
  EXPECT_THAT(reply.status, HasRpcMetadata("expected", std::to_string(kMaxUploadBytes)));
  EXPECT_THAT(reply.status, HasRpcMetadata("actual", "24000"));
  ExpectNothingLeft();
}

TEST_F(UploadErrorsTest, ACancelledStreamLeavesNothing) {
  for (const bool complete : {false, true}) {
    UploadStream stream(server_);
    ASSERT_TRUE(stream.Write(StartMessage("x")));
    for (const auto& [name, bytes] : AdapterFiles(1)) {
      ASSERT_TRUE(stream.Write(ChunkMessage(name, complete ? bytes : bytes.substr(0, 10))));
    }
    stream.Cancel();
    EXPECT_EQ(stream.Await().status.error_code(), grpc::StatusCode::CANCELLED);
    ExpectNothingLeft();
  }
}

TEST_F(UploadErrorsTest, ADeadlineThatPassesLeavesNothing) {
  UploadStream stream(server_, absl::Milliseconds(50));
  stream.Write(StartMessage("x"));
  stream.Write(ChunkMessage("adapter_config.json", "{}"));
  EXPECT_EQ(stream.Await().status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ExpectNothingLeft();
}

TEST_F(UploadErrorsTest, AShutdownDuringAnUploadLeavesNothing) {
  UploadStream stream(server_);
  ASSERT_TRUE(stream.Write(StartMessage("x")));
  ASSERT_TRUE(stream.Write(ChunkMessage("adapter_config.json", "{}")));
  server_.Shutdown();
  EXPECT_THAT(stream.Await().status, Not(IsRpcOk()));
  EXPECT_THAT(Incoming(), IsEmpty());
  EXPECT_THAT(Contents(), IsEmpty());
}

TEST_F(UploadErrorsTest, ADrainingServerTakesNone) {
  server_.draining() = true;
  EXPECT_THAT(Upload("x", AdapterFiles(1)).status, IsRpcError(Reason::kDraining));
  ExpectNothingLeft();
}

struct HoldsSources {
  FakeSources sources_;  // before the server, which uses it
};

// Reads what a test says instead of files.
class UploadHeldTest : private HoldsSources, public UploadErrorsTest {
 protected:
  UploadHeldTest() : UploadErrorsTest(Options(sources_)) {}
  ~UploadHeldTest() override { sources_.OpenAllGates(); }

  static TestServerOptions Options(FakeSources& sources) {
    TestServerOptions options;
    options.opener = sources.opener();
    return options;
  }

  FakeSource& source() { return sources_[""]; }  // that of stored content
  void Put(FakeContent content) { sources_.Put("", std::move(content)); }
};

TEST_F(UploadHeldTest, ACancelDuringTheLoadLeavesNothing) {
  FakeContent content;
  content.while_read = [](const Cancellation& cancellation) {
    SpinUntil([&] { return cancellation.IsCancelled(); });
  };
  Put(std::move(content));
  source().read_gate.Close();
  UploadStream stream(server_);
  ASSERT_TRUE(stream.Write(StartMessage("x")));
  ASSERT_TRUE(stream.Write(ChunkMessage("a", "1")));
  std::thread cancel([&] {
    source().read_gate.AwaitVisitor();
    EXPECT_EQ(Contents().size(), 1u);
    stream.Cancel();
    source().read_gate.Open();
  });
  EXPECT_EQ(stream.Close().status.error_code(), grpc::StatusCode::CANCELLED);
  cancel.join();
  ExpectNothingLeft();
}

TEST_F(UploadHeldTest, ACollectionDuringTheLoadLeavesTheContent) {
  Put({});
  source().read_gate.Close();
  UploadStream stream(server_);
  ASSERT_TRUE(stream.Write(StartMessage("x")));
  ASSERT_TRUE(stream.Write(ChunkMessage("a", "1")));
  std::thread collect([&] {
    source().read_gate.AwaitVisitor();
    AwaitCollection();
    EXPECT_EQ(Contents().size(), 1u);
    source().read_gate.Open();
  });
  EXPECT_THAT(stream.Close().status, IsRpcOk());
  collect.join();
  AwaitCollection();
  EXPECT_EQ(Contents().size(), 1u);
}

class UploadNowhereTest : public ::testing::Test {
 protected:
  static TestServerOptions Options() {
    TestServerOptions options;
    options.uploads = Uploads::kNowhere;
    return options;
  }
  TestServer server_{Options()};
};

TEST_F(UploadNowhereTest, WithoutAFolderToWriteToNothingIsTaken) {
  UploadStream stream(server_);
  stream.Write(StartMessage("x"));
  const auto reply = stream.Close();
  EXPECT_THAT(reply.status, IsRpcError(Reason::kNoDataDir));
  EXPECT_THAT(reply.status, HasRpcMessage(HasSubstr("--data-dir")));
}

}  // namespace
}  // namespace adapterd
