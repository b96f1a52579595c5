// Uploads through a real channel, and what they leave in the store.
#ifndef ADAPTERD_TESTS_SERVICE_UPLOAD_FIXTURE_H_
#define ADAPTERD_TESTS_SERVICE_UPLOAD_FIXTURE_H_

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "tests/testing/peft_builder.h"
#include "tests/testing/rpc_matchers.h"
#include "tests/testing/test_server.h"

namespace adapterd {

using UploadFiles = std::vector<std::pair<std::string, std::string>>;  // name, bytes

// The two files of an adapter with one module, which the seed tells from others.
inline UploadFiles AdapterFiles(uint32_t seed) {
  const TempDir dir;
  PeftBuilder(seed).Add("model.layers.0.q_proj", 2, 24, 10).Write(dir, "a");
  UploadFiles files;
  for (const std::string name : {"adapter_config.json", "adapter_model.safetensors"}) {
    files.emplace_back(name, ReadFile(dir / "a" / name));
  }
  return files;
}

inline v1::UploadAdapterRequest StartMessage(const std::string& name) {
  v1::UploadAdapterRequest message;
  message.mutable_start()->set_name(name);
  return message;
}

inline v1::UploadAdapterRequest ChunkMessage(const std::string& file, const std::string& data) {
  v1::UploadAdapterRequest message;
  message.mutable_chunk()->set_file_name(file);
  message.mutable_chunk()->set_data(data);
  return message;
}

// One upload, message by message.
class UploadStream {
 public:
  explicit UploadStream(TestServer& server, absl::Duration timeout = absl::InfiniteDuration()) {
    if (timeout != absl::InfiniteDuration()) {
      context_.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    }
    writer_ = server.adapters().UploadAdapter(&context_, &reply_.response);
  }

  // False once the call is over.
  bool Write(const v1::UploadAdapterRequest& message) { return writer_->Write(message); }
  void Cancel() { context_.TryCancel(); }
  // The answer, without having said that no more comes.
  Reply<v1::UploadAdapterResponse> Await() {
    reply_.status = writer_->Finish();
    return std::move(reply_);
  }
  Reply<v1::UploadAdapterResponse> Close() {
    writer_->WritesDone();
    return Await();
  }

 private:
  grpc::ClientContext context_;
  Reply<v1::UploadAdapterResponse> reply_;
  std::unique_ptr<grpc::ClientWriter<v1::UploadAdapterRequest>> writer_;
};

class UploadFixture : public ::testing::Test {
 protected:
  explicit UploadFixture(const TestServerOptions& options = {}) : server_(options) {}

  using Response = Reply<v1::UploadAdapterResponse>;
  static constexpr size_t kPiece = 100;

  // Each file in pieces of kPiece bytes.
  Response Upload(const v1::UploadAdapterRequest& start, const UploadFiles& files) {
    UploadStream stream(server_);
    bool open = stream.Write(start);
    for (const auto& [name, bytes] : files) {
      for (size_t done = 0; open && done < bytes.size(); done += kPiece) {
        open = stream.Write(ChunkMessage(name, bytes.substr(done, kPiece)));
      }
    }
    return open ? stream.Close() : stream.Await();
  }
  Response Upload(const std::string& name, const UploadFiles& files) {
    return Upload(StartMessage(name), files);
  }

  static std::set<std::string> NamesIn(const std::filesystem::path& folder) {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      names.insert(entry.path().filename());
    }
    return names;
  }
  std::set<std::string> Contents() { return NamesIn(server_.data_dir() / "store/content"); }
  std::set<std::string> Incoming() { return NamesIn(server_.data_dir() / "store/incoming"); }

  void AwaitCollection() {
    absl::Notification done;
    server_.collector().Request([&] { done.Notify(); });
    done.WaitForNotification();
  }

  void ExpectNothingLeft() {
    server_.AwaitNoCalls();
    EXPECT_THAT(Incoming(), ::testing::IsEmpty());
    EXPECT_THAT(Contents(), ::testing::IsEmpty());
    EXPECT_EQ(server_.used_bytes(), 0);
    EXPECT_EQ(server_.List()->total_size(), 0);
  }

  TestServer server_;
};

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_SERVICE_UPLOAD_FIXTURE_H_
