// What ApplyProjection and Merge are asked and what they answer, as bytes.
#ifndef ADAPTERD_BENCH_MESSAGES_H_
#define ADAPTERD_BENCH_MESSAGES_H_

#include <grpcpp/support/byte_buffer.h>

#include <string>

#include "absl/status/status.h"
#include "adapterd/v1/projection_service.pb.h"
#include "bench/data.h"

namespace adapterd::bench {

// To and from one buffer.
grpc::ByteBuffer Serialized(const google::protobuf::MessageLite& message);
absl::Status Parse(const grpc::ByteBuffer& bytes, google::protobuf::MessageLite& message);

// A request for modules [first, first + modules) of kPeftModules; `input` is [rows, in_features].
v1::ApplyProjectionRequest ApplyRequest(const std::string& adapter, const Tensor& input,
                                        int modules = 1, int first = 0);
grpc::ByteBuffer MakeApplyRequest(const std::string& adapter, const Tensor& input, int modules = 1,
                                  int first = 0);

// Whether the reply has so many outputs and each is what the oracle makes of `factors`, which map
// as many features to as many.
absl::Status VerifyApplyReply(const Tensor& input, const Factors& factors,
                              const grpc::ByteBuffer& reply, int modules = 1);
absl::Status VerifyApplyResponse(const Tensor& input, const Factors& factors,
                                 const v1::ApplyProjectionResponse& response, int modules = 1);

// A request for the first of kPeftModules; `weight` is [out_features, in_features].
grpc::ByteBuffer MakeMergeRequest(const std::string& adapter, const Tensor& weight);

// Whether the reply's weight is what the oracle makes of `factors` and the request's.
absl::Status VerifyMergeReply(const Tensor& weight, const Factors& factors,
                              const grpc::ByteBuffer& reply);

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_MESSAGES_H_
