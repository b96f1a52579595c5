// What ApplyProjection is asked and what it answers, as bytes.
#ifndef ADAPTERD_BENCH_APPLY_MESSAGE_H_
#define ADAPTERD_BENCH_APPLY_MESSAGE_H_

#include <grpcpp/support/byte_buffer.h>

#include <string>

#include "absl/status/status.h"
#include "bench/data.h"

namespace adapterd::bench {

// A request for kPeftModule of `adapter`; `input` is [rows, in_features].
grpc::ByteBuffer MakeApplyRequest(const std::string& adapter, const Tensor& input);

// Whether the reply is what the oracle makes of `factors`, which map as many features to as many.
absl::Status VerifyApplyReply(const Tensor& input, const Factors& factors,
                              const grpc::ByteBuffer& reply);

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_APPLY_MESSAGE_H_
