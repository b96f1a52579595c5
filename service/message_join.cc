#include <google/protobuf/wire_format_lite.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "service/tensor_message.h"

namespace adapterd {
namespace {

using google::protobuf::internal::WireFormatLite;

// One field of a message that our own serializer wrote.
struct WireField {
  std::string_view tag;  // its bytes
  int number = 0;
  WireFormatLite::WireType type = WireFormatLite::WIRETYPE_VARINT;
  std::string_view content;  // without the length that precedes it; of a group with its end

  bool delimited() const { return type == WireFormatLite::WIRETYPE_LENGTH_DELIMITED; }
};

uint64_t TakeVarint(std::string_view& in) {
  uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = static_cast<uint8_t>(in.front());
    in.remove_prefix(1);
    value |= uint64_t{byte & 0x7fu} << shift;
    if (byte < 0x80) return value;
  }
}

WireField TakeField(std::string_view& in);

// Takes a field's content off `in`, up to where the next field begins.
void SkipContent(WireFormatLite::WireType type, std::string_view& in) {
  switch (type) {
    case WireFormatLite::WIRETYPE_VARINT:
      TakeVarint(in);
      break;
    case WireFormatLite::WIRETYPE_FIXED64:
      in.remove_prefix(8);
      break;
    case WireFormatLite::WIRETYPE_FIXED32:
      in.remove_prefix(4);
      break;
    case WireFormatLite::WIRETYPE_LENGTH_DELIMITED:
      in.remove_prefix(TakeVarint(in));
      break;
    case WireFormatLite::WIRETYPE_START_GROUP:  // of unknown fields; no deeper than was parsed
      while (TakeField(in).type != WireFormatLite::WIRETYPE_END_GROUP) {
      }
      break;
    case WireFormatLite::WIRETYPE_END_GROUP:
      break;
  }
}

WireField TakeField(std::string_view& in) {
  WireField field;
  std::string_view from = in;
  const auto tag = static_cast<uint32_t>(TakeVarint(in));
  field.tag = from.substr(0, from.size() - in.size());
  field.number = WireFormatLite::GetTagFieldNumber(tag);
  field.type = WireFormatLite::GetTagWireType(tag);
  from = in;
  SkipContent(field.type, in);
  if (field.delimited()) TakeVarint(from);
  field.content = from.substr(0, from.size() - in.size());
  return field;
}

void AppendVarint(uint64_t value, std::string& out) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

size_t VarintBytes(uint64_t value) {
  size_t bytes = 1;
  for (; value >= 0x80; value >>= 7) ++bytes;
  return bytes;
}

class Joiner {
 public:
  explicit Joiner(TensorPayloads& payloads) : payloads_(payloads) {}

  void Write(const TensorFields& fields, std::string_view in) {
    while (!in.empty()) {
      const WireField field = TakeField(in);
      small_ += field.tag;
      if (!field.delimited()) {
        small_ += field.content;
        continue;
      }
      AppendVarint(JoinedBytes(fields, field), small_);
      if (const TensorFields* below = fields.Find(field.number)) {
        Write(*below, field.content);
      } else if (fields.IsData(field.number)) {
        AddSlice(payloads_.Release(field.content));
      } else {
        small_ += field.content;
      }
    }
  }

  grpc::ByteBuffer Finish() {
    FlushSmall();
    return grpc::ByteBuffer(slices_.data(), slices_.size());
  }

 private:
  // What the field's content has once it is joined.
  size_t JoinedBytes(const TensorFields& fields, const WireField& field) const {
    if (fields.IsData(field.number)) return payloads_.Find(field.content).size();
    const TensorFields* below = fields.Find(field.number);
    if (below == nullptr) return field.content.size();
    size_t bytes = 0;
    for (std::string_view in = field.content; !in.empty();) {
      const WireField inner = TakeField(in);
      const size_t content = inner.delimited() ? JoinedBytes(*below, inner) : inner.content.size();
      bytes += inner.tag.size() + content + (inner.delimited() ? VarintBytes(content) : 0);
    }
    return bytes;
  }

  void FlushSmall() {
    if (!small_.empty()) slices_.emplace_back(small_);
    small_.clear();
  }

  // The slice gives the buffer back to its pool, on a gRPC thread, once it is sent.
  void AddSlice(PooledBuffer payload) {
    FlushSmall();
    auto owner = std::make_unique<PooledBuffer>(std::move(payload));
    std::byte* data = owner->data();
    const size_t size = owner->size();
    slices_.emplace_back(
        data, size, +[](void* buffer) { delete static_cast<PooledBuffer*>(buffer); },
        owner.release());
  }

  TensorPayloads& payloads_;
  std::string small_;  // not yet a slice
  std::vector<grpc::Slice> slices_;
};

}  // namespace

grpc::ByteBuffer JoinMessage(const google::protobuf::Message& message, const TensorFields& fields,
                             TensorPayloads payloads) {
  Joiner joiner(payloads);
  joiner.Write(fields, message.SerializeAsString());
  return joiner.Finish();
}

}  // namespace adapterd
