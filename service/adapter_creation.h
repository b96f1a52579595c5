// Requests for new adapters, as core/adapter takes them.
#ifndef ADAPTERD_SERVICE_ADAPTER_CREATION_H_
#define ADAPTERD_SERVICE_ADAPTER_CREATION_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "adapterd/v1/adapter_creation.pb.h"
#include "core/adapter/new_adapter.h"

namespace adapterd {

ModelGeometry GeometryFromProto(const v1::ModelGeometry& geometry);

// What a request that names no targets means.
std::vector<std::string> TargetsFromProto(
    const google::protobuf::RepeatedPtrField<std::string>& targets);

// The type that factors get; F32 without one. UNSUPPORTED_DTYPE.
absl::StatusOr<DType> FactorTypeFromProto(v1::DataType dtype);

// The adapter that the request asks for, with nothing computed yet. It reads the request's tensors,
// which outlives it. INVALID_FIELD for fields of the other content, and errors of MakeFresh,
// MakeFromPairs and FloatTensor::Read.
absl::StatusOr<MadeAdapter> MadeFromProto(const v1::CreateAdapterRequest& request);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ADAPTER_CREATION_H_
