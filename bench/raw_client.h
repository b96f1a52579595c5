// A client that only moves bytes: what it costs, it costs alike whoever serves.
#ifndef ADAPTERD_BENCH_RAW_CLIENT_H_
#define ADAPTERD_BENCH_RAW_CLIENT_H_

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/status.h"

namespace adapterd::bench {

inline constexpr char kApplyMethod[] = "/adapterd.v1.ProjectionService/ApplyProjection";

// A connection that nobody else shares, to HOST:PORT or unix:PATH.
std::shared_ptr<grpc::Channel> ConnectAlone(const std::string& address);

// One connection of its own, one call at a time, on the calling thread, which polls the connection
// itself.
class RawClient {
 public:
  explicit RawClient(const std::string& address);
  ~RawClient();

  // ApplyProjection and Merge of a serialized request. Fail unless the reply has `reply_bytes`
  // bytes; 0 accepts any.
  absl::Status Apply(const grpc::ByteBuffer& request, size_t reply_bytes, grpc::ByteBuffer& reply);
  absl::Status Merge(const grpc::ByteBuffer& request, size_t reply_bytes, grpc::ByteBuffer& reply);
  // Whether the process lives.
  absl::Status CheckHealth();

 private:
  absl::Status Call(const char* method, const grpc::ByteBuffer& request, size_t reply_bytes,
                    grpc::ByteBuffer& reply);

  grpc::GenericStub stub_;
  grpc::CompletionQueue queue_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_RAW_CLIENT_H_
