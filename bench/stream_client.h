// A client of a stream of requests and replies that only moves bytes.
#ifndef ADAPTERD_BENCH_STREAM_CLIENT_H_
#define ADAPTERD_BENCH_STREAM_CLIENT_H_

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace adapterd::bench {

// One stream on a connection of its own, polled by the calling thread. One thread.
class StreamClient {
 public:
  // Opens StreamProjections. `reply_bytes` is what an echo is asked for.
  static absl::StatusOr<std::unique_ptr<StreamClient>> Open(const std::string& address,
                                                            size_t reply_bytes);
  ~StreamClient();
  StreamClient(const StreamClient&) = delete;
  StreamClient& operator=(const StreamClient&) = delete;

  // Sends `count` messages, all of `requests` at once and then each again when it is answered, and
  // waits for the last reply. Replies come in the order of the requests. Fails unless each has as
  // many bytes as Open was told; 0 there accepts any.
  absl::Status Exchange(const std::vector<grpc::ByteBuffer>& requests, int count);

  const grpc::ByteBuffer& last_reply() const { return reply_; }

 private:
  StreamClient(const std::string& address, size_t reply_bytes);
  absl::Status Await(void** tag);
  absl::Status End();  // how the call ended; once

  const size_t reply_bytes_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  grpc::ByteBuffer reply_;
  bool writing_ = false;
  bool ended_ = false;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_STREAM_CLIENT_H_
