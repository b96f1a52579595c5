// Registry types to messages and back.
#ifndef ADAPTERD_SERVICE_ADAPTER_CONVERT_H_
#define ADAPTERD_SERVICE_ADAPTER_CONVERT_H_

#include <string>

#include "absl/status/statusor.h"
#include "adapterd/v1/adapter.pb.h"
#include "adapterd/v1/adapter_service.pb.h"
#include "core/registry/registry_types.h"

namespace adapterd {

// Labels are few and short: they travel with every listing.
inline constexpr int kMaxLabels = 64;
inline constexpr size_t kMaxLabelKeyBytes = 317;  // prefix of 253, "/", name of 63
inline constexpr size_t kMaxLabelValueBytes = 63;

// NOT_IMPLEMENTED, for a field that is set.
absl::Status NotImplemented(const std::string& field);

// INVALID_FIELD unless [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}.
absl::Status CheckAdapterName(const std::string& name, const std::string& field);

// A reference to an adapter, its weight aside. NOT_IMPLEMENTED for name@alias.
absl::StatusOr<AdapterRef> RefFromProto(const v1::AdapterRef& ref, const std::string& field);

// The factor that a reference asks for; INVALID_FIELD when it is not finite.
absl::StatusOr<double> WeightFromProto(const v1::AdapterRef& ref, const std::string& field);

// INVALID_FIELD.
absl::StatusOr<ModuleSelector> SelectorFromProto(const v1::ModuleSelector& selector,
                                                 const std::string& field);

// LoadAdapterRequest or ValidateAdapterRequest, which share their fields. INVALID_FIELD, or
// NOT_IMPLEMENTED for a field of the message that nothing serves yet.
absl::StatusOr<LoadRequest> LoadRequestFromProto(const v1::LoadAdapterRequest& request);
absl::StatusOr<LoadRequest> LoadRequestFromProto(const v1::ValidateAdapterRequest& request);
// The same but the source, which is what is uploaded.
absl::StatusOr<LoadRequest> LoadRequestFromProto(const v1::UploadStart& start);

// FULL fills `modules`: all, or those at `only` when given.
void ToProto(const AdapterSnapshot& snapshot, v1::AdapterView view, v1::Adapter& out,
             const std::vector<size_t>* only = nullptr);

void ToProto(const Problem& problem, v1::Problem& out);

v1::AdapterState ToProto(AdapterState state);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ADAPTER_CONVERT_H_
