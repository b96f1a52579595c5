#include "bench/messages.h"

#include <fmt/format.h>

#include "adapterd/v1/merge_service.pb.h"
#include "bench/peft_folder.h"
#include "bench/verify.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

v1::DataType ToProto(DType dtype) {
  return dtype == DType::kBF16 ? v1::DATA_TYPE_BF16 : v1::DATA_TYPE_F32;
}

void SetTensor(const Tensor& from, v1::Tensor& to) {
  to.set_dtype(ToProto(from.dtype()));
  for (const int64_t dimension : from.shape()) to.add_shape(dimension);
  to.set_data(from.bytes().data(), from.bytes().size());
}

// The data of a tensor that ought to be like `expected`.
absl::StatusOr<MatrixView> Like(const MatrixView& expected, const v1::Tensor& tensor) {
  if (static_cast<int64_t>(tensor.data().size()) != expected.bytes()) {
    return absl::InternalError(fmt::format("the reply has {} bytes of data", tensor.data().size()));
  }
  return MatrixView{expected.dtype, expected.rows, expected.cols,
                    reinterpret_cast<const std::byte*>(tensor.data().data())};
}

}  // namespace

grpc::ByteBuffer Serialized(const google::protobuf::MessageLite& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

absl::Status Parse(const grpc::ByteBuffer& bytes, google::protobuf::MessageLite& message) {
  grpc::Slice slice;
  if (bytes.DumpToSingleSlice(&slice).ok() &&
      message.ParseFromArray(slice.begin(), static_cast<int>(slice.size()))) {
    return absl::OkStatus();
  }
  return absl::InternalError("the reply does not parse");
}

v1::ApplyProjectionRequest ApplyRequest(const std::string& adapter, const Tensor& input,
                                        int modules, int first) {
  v1::ApplyProjectionRequest request;
  request.mutable_adapter()->set_name(adapter);
  for (int i = first; i < first + modules; ++i) {
    request.add_projections()->mutable_module()->set_path(kPeftModules[i]);
  }
  SetTensor(input, *request.mutable_input());
  return request;
}

grpc::ByteBuffer MakeApplyRequest(const std::string& adapter, const Tensor& input, int modules,
                                  int first) {
  return Serialized(ApplyRequest(adapter, input, modules, first));
}

absl::Status VerifyApplyResponse(const Tensor& input, const Factors& factors,
                                 const v1::ApplyProjectionResponse& response, int modules) {
  if (response.outputs_size() != modules) {
    return absl::InternalError(fmt::format("the reply has {} outputs", response.outputs_size()));
  }
  for (const v1::ProjectionOutput& output : response.outputs()) {
    // in_features are out_features here
    ASSIGN_OR_RETURN(const MatrixView actual, Like(AsMatrix(input), output.output()));
    RETURN_IF_ERROR(VerifyProjection(AsMatrix(input), factors, actual));
  }
  return absl::OkStatus();
}

absl::Status VerifyApplyReply(const Tensor& input, const Factors& factors,
                              const grpc::ByteBuffer& reply, int modules) {
  v1::ApplyProjectionResponse response;
  RETURN_IF_ERROR(Parse(reply, response));
  return VerifyApplyResponse(input, factors, response, modules);
}

grpc::ByteBuffer MakeMergeRequest(const std::string& adapter, const Tensor& weight) {
  v1::MergeRequest request;
  request.mutable_module()->set_path(kPeftModules[0]);
  request.add_adapters()->set_name(adapter);
  SetTensor(weight, *request.mutable_weight());
  return Serialized(request);
}

absl::Status VerifyMergeReply(const Tensor& weight, const Factors& factors,
                              const grpc::ByteBuffer& reply) {
  v1::MergeResponse response;
  RETURN_IF_ERROR(Parse(reply, response));
  ASSIGN_OR_RETURN(const MatrixView merged, Like(AsMatrix(weight), response.weight()));
  return VerifyMerge(AsMatrix(weight), factors, merged);
}

}  // namespace adapterd::bench
