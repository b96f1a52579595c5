// A client that only moves bytes: what it costs, it costs alike whoever serves.
#ifndef ADAPTERD_BENCH_RAW_CLIENT_H_
#define ADAPTERD_BENCH_RAW_CLIENT_H_

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <cstddef>
#include <string>

#include "absl/status/status.h"

namespace adapterd::bench {

// One connection, one call at a time, on the calling thread, which polls the connection itself.
class RawClient {
 public:
  explicit RawClient(const std::string& address);
  ~RawClient();

  // ApplyProjection of a serialized request. Fails unless the reply has `reply_bytes` bytes; 0
  // accepts any.
  absl::Status Apply(const grpc::ByteBuffer& request, size_t reply_bytes, grpc::ByteBuffer& reply);

 private:
  grpc::GenericStub stub_;
  grpc::CompletionQueue queue_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_RAW_CLIENT_H_
