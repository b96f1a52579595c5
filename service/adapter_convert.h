// Registry types to messages and back.
#ifndef ADAPTERD_SERVICE_ADAPTER_CONVERT_H_
#define ADAPTERD_SERVICE_ADAPTER_CONVERT_H_

#include <string>

#include "absl/status/statusor.h"
#include "adapterd/v1/adapter.pb.h"
#include "adapterd/v1/adapter_service.pb.h"
#include "core/registry/registry_types.h"
#include "service/field_error.h"

namespace adapterd {

// A reference to an adapter, its weight aside; its name may be NAME@ALIAS. INVALID_FIELD.
absl::StatusOr<AdapterRef> RefFromProto(const v1::AdapterRef& ref, const std::string& field);

// The factor that a reference asks for; INVALID_FIELD when it is not finite.
absl::StatusOr<double> WeightFromProto(const v1::AdapterRef& ref, const std::string& field);

// INVALID_FIELD.
absl::StatusOr<ModuleSelector> SelectorFromProto(const v1::ModuleSelector& selector,
                                                 const std::string& field);

// Messages that share the fields of a load. INVALID_FIELD, or NOT_IMPLEMENTED for a field of the
// message that nothing serves yet.
absl::StatusOr<LoadRequest> LoadRequestFromProto(const v1::LoadAdapterRequest& request);
absl::StatusOr<LoadRequest> LoadRequestFromProto(const v1::ValidateAdapterRequest& request);
// What an upload is to become; its source is not known yet. Errors call the fields `start.NAME`.
absl::StatusOr<LoadRequest> LoadRequestFromProto(const v1::UploadStart& start);
// Without `replace`. Errors call the fields FIELD.NAME.
absl::StatusOr<LoadRequest> LoadRequestFromProto(const v1::AdapterSpec& spec,
                                                 const std::string& field);

// INVALID_FIELD for a value that AdapterView does not have.
absl::Status CheckView(v1::AdapterView view);

// FULL fills `modules` of an adapter whose manifest is there: all, or those at `only` when given.
void ToProto(const AdapterSnapshot& snapshot, v1::AdapterView view, v1::Adapter& out,
             const std::vector<size_t>* only = nullptr);

void ToProto(const Problem& problem, v1::Problem& out);

v1::AdapterState ToProto(AdapterState state);

void TimeToProto(absl::Time time, google::protobuf::Timestamp& out);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ADAPTER_CONVERT_H_
