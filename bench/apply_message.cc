#include "bench/apply_message.h"

#include <fmt/format.h>

#include "adapterd/v1/projection_service.pb.h"
#include "bench/peft_folder.h"
#include "bench/verify.h"

namespace adapterd::bench {
namespace {

v1::DataType ToProto(DType dtype) {
  return dtype == DType::kBF16 ? v1::DATA_TYPE_BF16 : v1::DATA_TYPE_F32;
}

}  // namespace

grpc::ByteBuffer MakeApplyRequest(const std::string& adapter, const Tensor& input) {
  v1::ApplyProjectionRequest request;
  request.mutable_adapter()->set_name(adapter);
  request.add_projections()->mutable_module()->set_path(kPeftModule);
  v1::Tensor& tensor = *request.mutable_input();
  tensor.set_dtype(ToProto(input.dtype()));
  tensor.add_shape(input.shape()[0]);
  tensor.add_shape(input.shape()[1]);
  tensor.set_data(input.bytes().data(), input.bytes().size());
  const grpc::Slice slice(request.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

absl::Status VerifyApplyReply(const Tensor& input, const Factors& factors,
                              const grpc::ByteBuffer& reply) {
  v1::ApplyProjectionResponse response;
  grpc::Slice bytes;
  if (!reply.DumpToSingleSlice(&bytes).ok() ||
      !response.ParseFromArray(bytes.begin(), static_cast<int>(bytes.size())) ||
      response.outputs_size() != 1) {
    return absl::InternalError("the reply does not parse");
  }
  const v1::Tensor& output = response.outputs(0).output();
  const MatrixView expected = AsMatrix(input);  // in_features are out_features here
  if (static_cast<int64_t>(output.data().size()) != expected.bytes()) {
    return absl::InternalError(fmt::format("the reply has {} bytes of data", output.data().size()));
  }
  return VerifyProjection(expected, factors,
                          {input.dtype(), expected.rows, expected.cols,
                           reinterpret_cast<const std::byte*>(output.data().data())});
}

}  // namespace adapterd::bench
