// Requests as raw buffers against generated code: the same are accepted, with the same values.
#include "service/tensor_message.h"

#include <grpcpp/support/byte_buffer.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "adapterd/v1/projection_service.pb.h"
#include "tests/fuzz/property.h"
#include "tests/fuzz/target.h"

namespace adapterd::fuzz {
namespace {

using Request = v1::StreamProjectionsRequest;

constexpr std::string_view kInput = "input with bytes";
constexpr std::string_view kBase = "base_output with bytes";
constexpr std::string_view kSegments = "segments";
constexpr std::string_view kUnknown = "unknown fields";
constexpr std::string_view kRefused = "no message";

constexpr DeepCheck kDeepChecks[] = {
    {kInput, ""}, {kBase, ""}, {kSegments, ""}, {kUnknown, ""}, {kRefused, ""},
};

// As the transport might cut it: lengths that the bytes themselves choose.
grpc::ByteBuffer InSlices(std::string_view input) {
  std::vector<grpc::Slice> slices;
  for (size_t length = 1; !input.empty(); input.remove_prefix(length)) {
    length = std::min<size_t>(1 + static_cast<unsigned char>(input.back()) % 13, input.size());
    slices.emplace_back(input.data(), length);
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

void PutBack(v1::Tensor& tensor, const TensorPayloads& payloads) {
  const std::span<const std::byte> bytes = payloads.Find(tensor.data());
  tensor.set_data(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

void PutBack(Request& request, const TensorPayloads& payloads) {
  if (!request.has_request()) return;
  v1::ApplyProjectionRequest& inner = *request.mutable_request();
  if (inner.has_input()) PutBack(*inner.mutable_input(), payloads);
  for (v1::Projection& projection : *inner.mutable_projections()) {
    if (projection.has_base_output()) PutBack(*projection.mutable_base_output(), payloads);
  }
}

void NoteParts(const Request& request) {
  const Target& target = TensorMessageTarget();
  if (!request.request().input().data().empty()) Note(target, kInput);
  for (const v1::Projection& projection : request.request().projections()) {
    if (!projection.base_output().data().empty()) Note(target, kBase);
  }
  if (request.request().segments_size() > 0) Note(target, kSegments);
  const auto& reflection = *request.GetReflection();
  if (!reflection.GetUnknownFields(request).empty()) Note(target, kUnknown);
}

std::string BytesOf(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  Require(buffer.Dump(&slices).ok(), "a joined message has slices");
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

void Run(std::string_view input) {
  Request expected;
  const bool parses = expected.ParseFromArray(input.data(), static_cast<int>(input.size()));
  BufferPool pool(0);
  TensorMessage<Request> split;
  const absl::Status status = split.Split(InSlices(input), pool);
  Require(status.ok() == parses, "what generated code accepts is accepted");
  if (!parses) {
    RequireGoodError(TensorMessageTarget(), status, {Reason::kInvalidField});
    return Note(TensorMessageTarget(), kRefused);
  }
  NoteParts(expected);
  Request found = split.message;
  PutBack(found, split.payloads);
  // Not the text of the two messages: NaN differs from itself there.
  Require(found.SerializePartialAsString() == expected.SerializePartialAsString(),
          "the values are those of generated code");
  Require(BytesOf(std::move(split).Join()) == expected.SerializePartialAsString(),
          "a joined message is what generated code writes");
}

}  // namespace

const Target& TensorMessageTarget() {
  static constexpr Target kTarget = {"tensor_message", Run, kDeepChecks};
  return kTarget;
}

}  // namespace adapterd::fuzz
