// UploadAdapter: what is stored, what is loaded, and what is removed again.
#include <cstdlib>

#include "tests/service/upload_fixture.h"

namespace adapterd {
namespace {

using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

class UploadTest : public UploadFixture {
 protected:
  v1::Adapter Get(const std::string& name) {
    v1::GetAdapterRequest request;
    request.set_name(name);
    const auto reply = server_.Get(request);
    EXPECT_THAT(reply.status, IsRpcOk());
    return reply->adapter();
  }
};

TEST_F(UploadTest, AnUploadServesWhatItsFolderWould) {
  const UploadFiles files = AdapterFiles(1);
  for (const auto& [name, bytes] : files) server_.dir().Write("folder/" + name, bytes);
  const auto loaded = server_.Load("loaded", "folder");
  ASSERT_THAT(loaded.status, IsRpcOk());

  v1::UploadAdapterRequest start = StartMessage("uploaded");
  start.mutable_start()->set_base_model("base");
  start.mutable_start()->set_pinned(true);
  (*start.mutable_start()->mutable_labels())["team"] = "red";
  start.mutable_start()->set_expected_digest(loaded->adapter().revision());
  const Response reply = Upload(start, files);
  ASSERT_THAT(reply.status, IsRpcOk());
  EXPECT_EQ(reply->adapter().name(), "uploaded");
  EXPECT_EQ(reply->adapter().state(), v1::ADAPTER_STATE_READY);
  EXPECT_EQ(reply->adapter().revision(), loaded->adapter().revision());
  EXPECT_EQ(reply->adapter().base_model(), "base");
  EXPECT_TRUE(reply->adapter().pinned());
  EXPECT_EQ(reply->adapter().labels().at("team"), "red");
  EXPECT_FALSE(reply->already_loaded());
  EXPECT_EQ(reply->replaced_revision(), "");
  EXPECT_EQ(Get("uploaded").revision(), loaded->adapter().revision());

  ASSERT_THAT(Contents(), SizeIs(1));
  for (const auto& [name, bytes] : files) {
    EXPECT_EQ(ReadFile(server_.data_dir() / ("store/content/" + *Contents().begin()) / name),
              bytes);
  }
  EXPECT_THAT(Incoming(), IsEmpty());
}

TEST_F(UploadTest, EqualContentIsStoredOnceUntilItsLastAdapterGoes) {
  for (const std::string name : {"x", "y"}) {
    ASSERT_THAT(Upload(name, AdapterFiles(1)).status, IsRpcOk());
  }
  EXPECT_THAT(Contents(), SizeIs(1));
  ASSERT_THAT(server_.Unload("x").status, IsRpcOk());
  AwaitCollection();
  EXPECT_THAT(Contents(), SizeIs(1));
  ASSERT_THAT(server_.Unload("y").status, IsRpcOk());
  AwaitCollection();
  ExpectNothingLeft();
}

TEST_F(UploadTest, TheSameUploadAgainIsANoOp) {
  ASSERT_THAT(Upload("x", AdapterFiles(1)).status, IsRpcOk());
  const Response again = Upload("x", AdapterFiles(1));
  ASSERT_THAT(again.status, IsRpcOk());
  EXPECT_TRUE(again->already_loaded());
  EXPECT_THAT(Contents(), SizeIs(1));
}

TEST_F(UploadTest, ANameInUseKeepsItsContentUnlessItIsReplaced) {
  const Response first = Upload("x", AdapterFiles(1));
  ASSERT_THAT(first.status, IsRpcOk());
  const std::set<std::string> before = Contents();
  const Response refused = Upload("x", AdapterFiles(2));
  EXPECT_THAT(refused.status, IsRpcError(Reason::kAdapterExists));
  EXPECT_EQ(Contents(), before);
  EXPECT_EQ(Get("x").revision(), first->adapter().revision());

  v1::UploadAdapterRequest start = StartMessage("x");
  start.mutable_start()->set_replace(true);
  const Response replaced = Upload(start, AdapterFiles(2));
  ASSERT_THAT(replaced.status, IsRpcOk());
  EXPECT_EQ(replaced->replaced_revision(), first->adapter().revision());
  EXPECT_NE(replaced->adapter().revision(), first->adapter().revision());
  EXPECT_THAT(Contents(), SizeIs(1));
  EXPECT_NE(Contents(), before);
}

TEST_F(UploadTest, AFolderThatTakesThePlaceOfAnUploadFreesItsContent) {
  ASSERT_THAT(Upload("x", AdapterFiles(1)).status, IsRpcOk());
  for (const auto& [name, bytes] : AdapterFiles(2)) server_.dir().Write("folder/" + name, bytes);
  v1::LoadAdapterRequest request;
  request.set_name("x");
  request.set_source("folder");
  request.set_replace(true);
  ASSERT_THAT(server_.Load(request).status, IsRpcOk());
  AwaitCollection();
  EXPECT_THAT(Contents(), IsEmpty());
}

TEST_F(UploadTest, UploadsAtOnceDoNotMeet) {
  constexpr int kUploads = 8;
  std::vector<std::thread> threads;
  for (int i = 0; i < kUploads; ++i) {
    threads.emplace_back([this, i] {
      const Response reply = Upload("x" + std::to_string(i), AdapterFiles(i % 4));
      EXPECT_THAT(reply.status, IsRpcOk());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(Contents(), SizeIs(4));
  EXPECT_EQ(server_.List()->total_size(), kUploads);
}

TEST_F(UploadTest, ItIsCountedLikeEveryRpc) {
  ASSERT_THAT(Upload("x", AdapterFiles(1)).status, IsRpcOk());
  EXPECT_EQ(
      server_.Metric("grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"UploadAdapter\""
                     ",grpc_service=\"adapterd.v1.AdapterService\"}"),
      1);
}

// Below a $TMPDIR of its own.
class TemporaryUploadTest : public ::testing::Test {
 protected:
  struct Temporary : UploadFixture {
    Temporary() : UploadFixture(Options()) {}
    void TestBody() override {}
    static TestServerOptions Options() {
      TestServerOptions options;
      options.uploads = Uploads::kTemporary;
      return options;
    }
    using UploadFixture::server_;
    using UploadFixture::Upload;
  };

  TemporaryUploadTest() { setenv("TMPDIR", tmp_.path().c_str(), 1); }
  ~TemporaryUploadTest() override { unsetenv("TMPDIR"); }

  // Of all stored files.
  int64_t StoredFiles() const {
    int64_t files = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(tmp_.path())) {
      files += entry.is_regular_file() ? 1 : 0;
    }
    return files;
  }

  TempDir tmp_;
};

TEST_F(TemporaryUploadTest, TheFilesGoAsSoonAsTheyAreLoaded) {
  Temporary temporary;
  const auto reply = temporary.Upload("x", AdapterFiles(1));
  ASSERT_THAT(reply.status, IsRpcOk());
  EXPECT_EQ(StoredFiles(), 0);
  EXPECT_GT(temporary.server_.used_bytes(), 0);
  EXPECT_THAT(temporary.Upload("y", {{"adapter_config.json", "{}"}}).status, Not(IsRpcOk()));
  EXPECT_EQ(StoredFiles(), 0);
}

}  // namespace
}  // namespace adapterd
