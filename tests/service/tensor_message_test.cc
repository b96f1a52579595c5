// Messages as raw buffers against generated code: however they are cut, ordered or damaged, the
// same are accepted with the same values, and what is joined is what generated code writes.
#include "service/tensor_message.h"

#include <fmt/format.h>
#include <google/protobuf/stubs/logging.h>
#include <gtest/gtest.h>

#include <optional>

#include "adapterd/v1/merge_service.pb.h"
#include "adapterd/v1/projection_service.pb.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/wire.h"

namespace adapterd {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using google::protobuf::UnknownFieldSet;

template <typename Change>
void ForEachBelow(Message& message, Change change) {
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->message_type() == nullptr) continue;
    if (!field->is_repeated()) {
      change(*reflection.MutableMessage(&message, field));
      continue;
    }
    for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
      change(*reflection.MutableRepeatedMessage(&message, field, i));
    }
  }
}

// Every tensor's bytes in place of their ticket, as generated code has them.
void PutBack(Message& message, const TensorPayloads& payloads) {
  if (message.GetDescriptor() == v1::Tensor::descriptor()) {
    auto& tensor = static_cast<v1::Tensor&>(message);
    const std::span<const std::byte> bytes = payloads.Find(tensor.data());
    tensor.set_data(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }
  ForEachBelow(message, [&](Message& below) { PutBack(below, payloads); });
}

// Fields that no version of ours has, two of them with numbers that lead to tensors elsewhere.
std::string UnknownFields() {
  using namespace wire;  // NOLINT(google-build-using-namespace): what follows is written in it
  const std::string tensor = Bytes(15, "not a tensor's") + Int(1, 2);
  return Int(100, 1) + Fixed32(101) + Fixed64(102) + Bytes(103, "unknown") +
         Group(104, Bytes(15, Bytes(15, tensor)) + Group(15, tensor) + Fixed32(14)) +
         Group(105, "");
}

void AddUnknownFields(Message& message) {
  UnknownFieldSet& unknown = *message.GetReflection()->MutableUnknownFields(&message);
  ASSERT_TRUE(unknown.ParseFromString(UnknownFields()));
  ForEachBelow(message, AddUnknownFields);
}

// Sets every field, lists with two entries, each to something of its own.
class Filler {
 public:
  void Fill(Message& message) {
    const google::protobuf::Descriptor& type = *message.GetDescriptor();
    for (int i = 0; i < type.field_count(); ++i) Set(message, *type.field(i));
  }

 private:
  void Set(Message& message, const FieldDescriptor& field) {
    const Reflection& reflection = *message.GetReflection();
    const bool list = field.is_repeated();
    for (int i = 0; i < (list ? 2 : 1); ++i) {
      switch (field.cpp_type()) {
        case FieldDescriptor::CPPTYPE_MESSAGE:
          Fill(list ? *reflection.AddMessage(&message, &field)
                    : *reflection.MutableMessage(&message, &field));
          break;
        case FieldDescriptor::CPPTYPE_STRING:
          SetOrAdd(message, field, &Reflection::SetString, &Reflection::AddString,
                   fmt::format("{}-{}", field.name(), ++count_));
          break;
        case FieldDescriptor::CPPTYPE_INT32:
          SetOrAdd(message, field, &Reflection::SetInt32, &Reflection::AddInt32, -++count_);
          break;
        case FieldDescriptor::CPPTYPE_INT64:
          SetOrAdd(message, field, &Reflection::SetInt64, &Reflection::AddInt64, ++count_);
          break;
        case FieldDescriptor::CPPTYPE_UINT64:
          SetOrAdd(message, field, &Reflection::SetUInt64, &Reflection::AddUInt64, ++count_);
          break;
        case FieldDescriptor::CPPTYPE_FLOAT:
          SetOrAdd(message, field, &Reflection::SetFloat, &Reflection::AddFloat, ++count_);
          break;
        case FieldDescriptor::CPPTYPE_DOUBLE:
          SetOrAdd(message, field, &Reflection::SetDouble, &Reflection::AddDouble, ++count_);
          break;
        case FieldDescriptor::CPPTYPE_BOOL:
          SetOrAdd(message, field, &Reflection::SetBool, &Reflection::AddBool, true);
          break;
        case FieldDescriptor::CPPTYPE_ENUM:
          SetOrAdd(message, field, &Reflection::SetEnumValue, &Reflection::AddEnumValue, 2);
          break;
        default:
          FAIL() << "no way to fill " << field.full_name();
      }
    }
  }

  template <typename Setter, typename Adder, typename Value>
  static void SetOrAdd(Message& message, const FieldDescriptor& field, Setter set, Adder add,
                       Value value) {
    const Reflection& reflection = *message.GetReflection();
    if (field.is_repeated()) {
      (reflection.*add)(&message, &field, value);
    } else {
      (reflection.*set)(&message, &field, value);
    }
  }

  int count_ = 0;
};

template <typename M>
M Full() {
  M message;
  Filler().Fill(message);
  return message;
}

// Splits `bytes` and joins them again, and compares with generated code. Whether they are a
// message.
template <typename M>
bool AgreesWithGeneratedCode(const std::string& bytes, const grpc::ByteBuffer& buffer) {
  const google::protobuf::LogSilencer quiet;  // of text that is not UTF-8
  M expected;
  const bool parses = expected.ParseFromString(bytes);
  BufferPool pool(0);
  {
    TensorMessage<M> split;
    const absl::Status status = split.Split(buffer, pool);
    EXPECT_EQ(status.ok(), parses) << status;
    if (status.ok() != parses) return parses;
    if (!parses) {
      EXPECT_THAT(status, HasReason(Reason::kInvalidField));
      EXPECT_NE(status.message().find(M::descriptor()->name()), absl::string_view::npos) << status;
    } else {
      M found = split.message;
      PutBack(found, split.payloads);
      // Not the text: NaN differs from itself there.
      EXPECT_EQ(found.SerializeAsString(), expected.SerializeAsString());
      EXPECT_EQ(wire::BytesOf(std::move(split).Join()), expected.SerializeAsString());
    }
  }
  EXPECT_EQ(pool.used_bytes(), 0);
  return parses;
}

template <typename M>
bool AgreesWithGeneratedCode(const std::string& bytes) {
  return AgreesWithGeneratedCode<M>(bytes, wire::InOnePiece(bytes));
}

// What holds of every type that has tensors.
template <typename M>
class TensorMessageTest : public ::testing::Test {};

using Types = ::testing::Types<v1::ApplyProjectionRequest, v1::ApplyProjectionResponse,
                               v1::MergeRequest, v1::MergeResponse, v1::StreamProjectionsRequest,
                               v1::StreamProjectionsResponse>;
TYPED_TEST_SUITE(TensorMessageTest, Types);

TYPED_TEST(TensorMessageTest, AnEmptyMessageIsOne) {
  EXPECT_TRUE(AgreesWithGeneratedCode<TypeParam>("", grpc::ByteBuffer(nullptr, 0)));
  EXPECT_TRUE(AgreesWithGeneratedCode<TypeParam>(""));
}

TYPED_TEST(TensorMessageTest, WhereverItIsCut) {
  const std::string bytes = Full<TypeParam>().SerializeAsString();
  for (size_t at = 1; at <= bytes.size(); ++at) {
    SCOPED_TRACE(at);
    ASSERT_TRUE(
        AgreesWithGeneratedCode<TypeParam>(bytes, wire::InPieces(bytes, at, std::string::npos)));
    ASSERT_TRUE(AgreesWithGeneratedCode<TypeParam>(bytes, wire::InPieces(bytes, 1, at)));
  }
}

TYPED_TEST(TensorMessageTest, EmptyPiecesAreNothing) {
  const std::string bytes = Full<TypeParam>().SerializeAsString();
  std::vector<grpc::Slice> slices = {grpc::Slice("", 0)};
  for (const char& byte : bytes) {
    slices.emplace_back(&byte, 1);
    slices.emplace_back("", 0);
  }
  EXPECT_TRUE(AgreesWithGeneratedCode<TypeParam>(bytes, {slices.data(), slices.size()}));
}

TYPED_TEST(TensorMessageTest, TruncatedAtEveryLength) {
  const std::string bytes = Full<TypeParam>().SerializeAsString();
  int accepted = 0;
  for (size_t size = 0; size < bytes.size(); ++size) {
    SCOPED_TRACE(size);
    accepted += AgreesWithGeneratedCode<TypeParam>(bytes.substr(0, size)) ? 1 : 0;
  }
  EXPECT_GT(accepted, 0);  // between two fields of the outermost message
  EXPECT_LT(accepted, static_cast<int>(bytes.size()) / 4);
}

TYPED_TEST(TensorMessageTest, WithAnyByteChanged) {
  const std::string bytes = Full<TypeParam>().SerializeAsString();
  int accepted = 0;
  int refused = 0;
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (const int change : {1, 2, 3, 4, 6, 7, 8, 0x70, 0x80, 0xff}) {
      std::string changed = bytes;
      changed[at] = static_cast<char>(changed[at] ^ change);
      SCOPED_TRACE(fmt::format("byte {} ^ {}", at, change));
      ++(AgreesWithGeneratedCode<TypeParam>(changed) ? accepted : refused);
    }
  }
  EXPECT_GT(accepted, 100);
  EXPECT_GT(refused, 100);
}

TYPED_TEST(TensorMessageTest, FieldsInReverseOrderAndTwice) {
  const std::string bytes = Full<TypeParam>().SerializeAsString();
  EXPECT_TRUE(AgreesWithGeneratedCode<TypeParam>(bytes + bytes));
  std::string reversed;
  const TypeParam full = Full<TypeParam>();
  std::vector<const FieldDescriptor*> fields;
  full.GetReflection()->ListFields(full, &fields);
  for (const FieldDescriptor* field : fields) {
    TypeParam one = full;
    for (const FieldDescriptor* other : fields) {
      if (other != field) one.GetReflection()->ClearField(&one, other);
    }
    reversed.insert(0, one.SerializeAsString());
  }
  ASSERT_EQ(reversed.size(), bytes.size());
  EXPECT_TRUE(AgreesWithGeneratedCode<TypeParam>(reversed));
  EXPECT_TRUE(AgreesWithGeneratedCode<TypeParam>(reversed + bytes + reversed));
}

TYPED_TEST(TensorMessageTest, UnknownFieldsAtEveryLevelStay) {
  TypeParam message = Full<TypeParam>();
  AddUnknownFields(message);
  const std::string bytes = message.SerializeAsString();
  EXPECT_TRUE(AgreesWithGeneratedCode<TypeParam>(bytes));
  EXPECT_TRUE(AgreesWithGeneratedCode<TypeParam>(bytes, wire::InPieces(bytes, 1, 1)));
  EXPECT_TRUE(AgreesWithGeneratedCode<TypeParam>(UnknownFields() + bytes + UnknownFields()));
}

// Hand-made bytes of one tensor, and of messages around it.
class WireTest : public ::testing::Test {
 protected:
  static std::string Input(std::string_view tensor) { return wire::Bytes(15, tensor); }

  // The input's content in an accepted request; nullopt when it is refused.
  static std::optional<std::string> DataOf(const std::string& request) {
    if (!AgreesWithGeneratedCode<v1::ApplyProjectionRequest>(request)) return std::nullopt;
    TensorMessage<v1::ApplyProjectionRequest> split;
    EXPECT_THAT(split.Split(wire::InOnePiece(request), pool()), IsOk());
    const std::span<const std::byte> bytes = split.payloads.Find(split.message.input().data());
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }

  static bool Accepts(const std::string& request) { return DataOf(request).has_value(); }

  static BufferPool& pool() {
    static BufferPool pool(1 << 20);
    return pool;
  }

  static std::string Data(std::string_view bytes) { return wire::Bytes(15, bytes); }
  static std::string DType(int value) { return wire::Int(1, value); }
};

TEST_F(WireTest, FieldsOfATensorInAnyOrder) {
  const std::string shape = wire::Bytes(2, wire::Varint(2));
  EXPECT_EQ(DataOf(Input(Data("abcdefgh") + DType(1) + shape)), "abcdefgh");
  EXPECT_EQ(DataOf(Input(shape + Data("abcdefgh") + DType(1))), "abcdefgh");
  EXPECT_EQ(DataOf(Input(DType(2) + Data("abcdefgh") + shape + DType(1))), "abcdefgh");
}

TEST_F(WireTest, TheLastDataCounts) {
  EXPECT_EQ(DataOf(Input(Data("first") + Data("second"))), "second");
  EXPECT_EQ(DataOf(Input(Data("first") + Data(""))), "");
  EXPECT_EQ(DataOf(Input(Data("") + Data("second"))), "second");
  EXPECT_EQ(DataOf(Input(Data("a") + Data("b") + Data("") + Data("c"))), "c");
}

TEST_F(WireTest, ATensorThatComesTwiceIsMerged) {
  EXPECT_EQ(DataOf(Input(Data("first")) + Input(DType(1))), "first");
  EXPECT_EQ(DataOf(Input(Data("first")) + Input(Data("second"))), "second");
  EXPECT_EQ(DataOf(Input(Data("first")) + Input(Data(""))), "");
  EXPECT_EQ(DataOf(Input(DType(1)) + Input("") + Input(Data("last"))), "last");
}

TEST_F(WireTest, TensorsOfAListStayApart) {
  const std::string list = wire::Bytes(14, Input(Data("first"))) + wire::Bytes(14, "") +
                           wire::Bytes(14, Input(Data(""))) + wire::Bytes(14, Input(Data("last")));
  EXPECT_EQ(DataOf(list + Input(Data("input"))), "input");
  TensorMessage<v1::ApplyProjectionRequest> split;
  ASSERT_THAT(split.Split(wire::InOnePiece(list), pool()), IsOk());
  PutBack(split.message, split.payloads);
  ASSERT_EQ(split.message.projections_size(), 4);
  EXPECT_EQ(split.message.projections(0).base_output().data(), "first");
  EXPECT_FALSE(split.message.projections(1).has_base_output());
  EXPECT_TRUE(split.message.projections(2).has_base_output());
  EXPECT_EQ(split.message.projections(3).base_output().data(), "last");
}

// A client cannot name another tensor's bytes, whatever it writes.
TEST_F(WireTest, BytesThatLookLikeATicketAreBytes) {
  for (const uint32_t number : {0u, 1u, 2u, 0xffffffffu}) {
    const std::string bytes(reinterpret_cast<const char*>(&number), sizeof(number));
    EXPECT_EQ(DataOf(wire::Bytes(14, Input(Data("other"))) + Input(Data(bytes))), bytes);
  }
}

TEST_F(WireTest, DataOfOtherWireTypesIsUnknown) {
  EXPECT_EQ(DataOf(Input(wire::Int(15, 7))), "");
  EXPECT_EQ(DataOf(Input(wire::Fixed32(15))), "");
  EXPECT_EQ(DataOf(Input(wire::Fixed64(15))), "");
  EXPECT_EQ(DataOf(Input(wire::Group(15, Data("inside")))), "");
  EXPECT_EQ(DataOf(Input(Data("data") + wire::Int(15, 7))), "data");
}

TEST_F(WireTest, MessagesOfOtherWireTypesAreUnknown) {
  const std::string tensor = Data("data");
  EXPECT_EQ(DataOf(wire::Int(15, 7)), "");
  EXPECT_EQ(DataOf(wire::Fixed64(15) + Input(tensor)), "data");
  EXPECT_EQ(DataOf(wire::Group(15, tensor)), "");
  EXPECT_EQ(DataOf(wire::Group(14, Input(tensor)) + Input(tensor)), "data");
  EXPECT_EQ(DataOf(Input(wire::Bytes(1, "a dtype of the wrong type") + tensor)), "data");
}

TEST_F(WireTest, NumbersMayTakeMoreBytesThanTheyNeed) {
  using wire::Tag;
  using wire::Varint;
  const std::string data = "four";
  for (size_t bytes = 1; bytes <= 7; ++bytes) {
    SCOPED_TRACE(bytes);
    const auto with = [&](const std::string& tag, const std::string& length) {
      return tag + length + data;
    };
    const std::optional<std::string> expected =
        bytes <= 5 ? std::optional(data) : std::nullopt;  // of a tag, and of a length
    EXPECT_EQ(DataOf(Input(with(Tag(15, wire::kBytes, bytes), Varint(4)))), expected);
    EXPECT_EQ(DataOf(Input(with(Tag(15, wire::kBytes), Varint(4, bytes)))), expected);
    const std::string tensor = Data(data);
    EXPECT_EQ(
        DataOf(with(Tag(15, wire::kBytes, bytes) + Varint(6) + Tag(15, wire::kBytes), Varint(4))),
        expected);
    EXPECT_EQ(DataOf(Tag(15, wire::kBytes) + Varint(6, bytes) + tensor), expected);
    EXPECT_EQ(DataOf(Input(tensor) + Tag(200, wire::kVarint, bytes) + Varint(1)), expected);
    EXPECT_EQ(DataOf(Input(tensor) + Tag(200, wire::kBytes) + Varint(1, bytes) + "x"), expected);
  }
  for (size_t bytes = 1; bytes <= 12; ++bytes) {
    SCOPED_TRACE(bytes);
    const bool fits = bytes <= 10;
    EXPECT_EQ(Accepts(Input(Tag(1, wire::kVarint) + Varint(1, bytes))), fits);
    EXPECT_EQ(Accepts(Tag(200, wire::kVarint) + Varint(1, bytes)), fits);
    EXPECT_EQ(Accepts(wire::Group(200, Tag(1, wire::kVarint) + Varint(1, bytes))), fits);
  }
}

TEST_F(WireTest, NumbersThatOverflow) {
  for (const uint64_t number : {uint64_t{1} << 28, uint64_t{1} << 29, (uint64_t{1} << 32) - 1}) {
    Accepts(wire::Varint(number << 3 | wire::kVarint) + wire::Varint(1));
    Accepts(wire::Varint(number << 3 | wire::kBytes) + wire::Varint(0));
  }
  for (const uint64_t length :
       {uint64_t{5}, uint64_t{1} << 20, (uint64_t{1} << 31) - 1, uint64_t{1} << 31,
        uint64_t{1} << 32, (uint64_t{1} << 32) + 4, (uint64_t{1} << 35) - 1, ~uint64_t{0}}) {
    SCOPED_TRACE(length);
    const std::string too_long = wire::Varint(length) + "four";
    EXPECT_FALSE(Accepts(Input(wire::Tag(15, wire::kBytes) + too_long)));
    EXPECT_FALSE(Accepts(wire::Tag(15, wire::kBytes) + too_long));
    EXPECT_FALSE(Accepts(wire::Tag(200, wire::kBytes) + too_long));
    EXPECT_FALSE(Accepts(wire::Group(200, wire::Tag(15, wire::kBytes) + too_long)));
  }
}

// What follows a message is not its content, though it is there.
TEST_F(WireTest, NothingReachesBeyondItsMessage) {
  const std::string rest = Input(Data("other"));
  for (const std::string& tensor :
       {wire::Tag(15, wire::kBytes) + wire::Varint(6) + "four", wire::Tag(1, wire::kVarint),
        wire::Tag(1, wire::kVarint) + "\x80", wire::Tag(9, wire::kFixed32) + "abc",
        wire::Tag(9, wire::kFixed64) + "abcdefg", wire::Tag(9, wire::kStart), std::string("\xfa"),
        wire::Tag(15, wire::kBytes), wire::Tag(15, wire::kBytes) + "\x80",
        wire::Tag(9, wire::kBytes) + wire::Varint(5) + "four"}) {
    EXPECT_FALSE(Accepts(Input(tensor) + rest));
    EXPECT_FALSE(Accepts(wire::Bytes(14, Input(tensor)) + rest));
    EXPECT_FALSE(Accepts(wire::Bytes(14, Input(tensor) + rest) + rest));
  }
}

TEST_F(WireTest, GroupsEndAsTheyBegin) {
  using wire::Tag;
  const std::string data = Input(Data("data"));
  EXPECT_TRUE(Accepts(wire::Group(9, wire::Group(8, data) + data) + data));
  EXPECT_FALSE(Accepts(Tag(9, wire::kStart) + Tag(8, wire::kEnd) + data));
  EXPECT_FALSE(Accepts(Tag(9, wire::kStart) + Tag(8, wire::kStart) + Tag(9, wire::kEnd) +
                       Tag(8, wire::kEnd) + data));
  EXPECT_FALSE(Accepts(Tag(9, wire::kStart) + data));
  EXPECT_FALSE(Accepts(data + Tag(9, wire::kEnd)));
  EXPECT_FALSE(Accepts(Tag(9, wire::kEnd) + data));
  EXPECT_FALSE(Accepts(Input(Data("data") + Tag(15, wire::kEnd))));
  EXPECT_FALSE(Accepts(wire::Group(9, wire::Varint(9 << 3 | 6))));
  EXPECT_FALSE(Accepts(wire::Group(9, wire::Varint(9 << 3 | 7))));
  EXPECT_FALSE(Accepts(wire::Group(9, wire::Int(0, 1))));
}

TEST_F(WireTest, DeepGroupsAreRefusedAndCostNoStack) {
  for (int depth = 1; depth <= 120; ++depth) {  // generated code's limit is on the way
    std::string groups;
    for (int i = 0; i < depth; ++i) groups = wire::Group(9, groups);
    SCOPED_TRACE(depth);
    const bool accepts = Accepts(groups + Input(Data("data")));
    EXPECT_TRUE(accepts || depth > 50);
    EXPECT_FALSE(accepts && depth == 120);
    Accepts(Input(groups + Data("data")));
  }
  constexpr int kDeep = 1'000'000;
  EXPECT_FALSE(Accepts(std::string(kDeep, static_cast<char>(9 << 3 | wire::kStart))));
  EXPECT_FALSE(Accepts(std::string(kDeep, static_cast<char>(9 << 3 | wire::kStart)) +
                       std::string(kDeep, static_cast<char>(9 << 3 | wire::kEnd))));
}

}  // namespace
}  // namespace adapterd
