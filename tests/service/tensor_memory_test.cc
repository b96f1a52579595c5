// Where the bytes of a message's tensors lie, and for how long.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "adapterd/v1/merge_service.pb.h"
#include "adapterd/v1/projection_service.pb.h"
#include "service/tensor_message.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/wire.h"

namespace adapterd {
namespace {

using Response = TensorMessage<v1::ApplyProjectionResponse>;

std::string Pattern(size_t size) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i * 7 + i / 251);
  return bytes;
}

bool IsAligned(const std::byte* data) {
  return reinterpret_cast<uintptr_t>(data) % kBufferAlignment == 0;
}

PooledBuffer Buffer(BufferPool& pool, const std::string& bytes) {
  PooledBuffer buffer = pool.Take(bytes.size());
  std::memcpy(buffer.data(), bytes.data(), bytes.size());
  return buffer;
}

// One output with each of `contents`.
Response MakeResponse(BufferPool& pool, const std::vector<std::string>& contents) {
  Response response;
  response.message.add_adapters()->set_name("a");
  for (const std::string& content : contents) {
    v1::ProjectionOutput& output = *response.message.add_outputs();
    output.set_path("q_proj");
    output.mutable_output()->set_data(response.payloads.Add(Buffer(pool, content)));
  }
  return response;
}

TEST(TensorMemoryTest, PayloadsAreWholeAndAlignedHoweverTheyCame) {
  BufferPool pool(0);
  const std::string weight = Pattern(1'000'003);
  v1::MergeRequest request;
  request.mutable_module()->set_path("x");
  request.mutable_bias()->set_data("b");
  request.mutable_weight()->set_data(weight);
  const std::string bytes = request.SerializeAsString();
  for (const size_t piece : {size_t{1} << 30, size_t{16384}, size_t{8191}, size_t{13}}) {
    TensorMessage<v1::MergeRequest> split;
    ASSERT_THAT(split.Split(wire::InPieces(bytes, 1, piece), pool), IsOk());
    const std::span<const std::byte> found = split.payloads.Find(split.message.weight().data());
    EXPECT_TRUE(std::ranges::equal(found, std::as_bytes(std::span(weight))));
    EXPECT_TRUE(IsAligned(found.data()));
    EXPECT_TRUE(IsAligned(split.payloads.Find(split.message.bias().data()).data()));
  }
}

TEST(TensorMemoryTest, AMessageHoldsItsPayloadsAndNoMore) {
  BufferPool pool(0);
  {
    TensorMessage<v1::MergeRequest> split;
    const std::string bytes = wire::Bytes(15, wire::Bytes(15, Pattern(100'000)));
    ASSERT_THAT(split.Split(wire::InOnePiece(bytes), pool), IsOk());
    EXPECT_GE(pool.used_bytes(), 100'000);
    EXPECT_LE(pool.used_bytes(), 125'000);
    TensorMessage<v1::MergeRequest> moved = std::move(split);
    EXPECT_EQ(moved.payloads.Find(moved.message.weight().data()).size(), 100'000u);
  }
  EXPECT_EQ(pool.used_bytes(), 0);
}

TEST(TensorMemoryTest, ARefusedMessageHoldsNothing) {
  BufferPool pool(0);
  {
    TensorMessage<v1::MergeRequest> split;
    const std::string bytes = wire::Bytes(15, wire::Bytes(15, Pattern(100'000))) + "\xff";
    EXPECT_THAT(split.Split(wire::InOnePiece(bytes), pool), HasReason(Reason::kInvalidField));
  }
  EXPECT_EQ(pool.used_bytes(), 0);
}

TEST(TensorMemoryTest, ALengthThatLiesTakesNoMemory) {
  BufferPool pool(0);
  TensorMessage<v1::MergeRequest> split;
  const std::string bytes =
      wire::Bytes(15, wire::Tag(15, wire::kBytes) + wire::Varint((1u << 31) - 1) + "few");
  EXPECT_THAT(split.Split(wire::InOnePiece(bytes), pool), HasReason(Reason::kInvalidField));
  EXPECT_EQ(pool.used_bytes(), 0);
}

TEST(TensorMemoryTest, AJoinedMessageGivesItsMemoryBackWhenItIsSent) {
  BufferPool pool(0);
  const std::string content = Pattern(50'000);
  std::optional<grpc::ByteBuffer> sent = MakeResponse(pool, {content, content}).Join();
  EXPECT_GE(pool.used_bytes(), 100'000);
  v1::ApplyProjectionResponse response;
  ASSERT_TRUE(response.ParseFromString(wire::BytesOf(*sent)));
  EXPECT_EQ(response.outputs(1).output().data(), content);
  grpc::ByteBuffer copy = *sent;  // shares the memory
  sent.reset();
  EXPECT_GE(pool.used_bytes(), 100'000);
  copy.Clear();
  EXPECT_EQ(pool.used_bytes(), 0);
}

TEST(TensorMemoryTest, AJoinedMessageIsTheMemoryItself) {
  BufferPool pool(0);
  Response response = MakeResponse(pool, {Pattern(50'000)});
  const std::byte* data =
      response.payloads.Find(response.message.outputs(0).output().data()).data();
  const grpc::ByteBuffer joined = std::move(response).Join();
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(joined.Dump(&slices).ok());
  EXPECT_TRUE(std::ranges::any_of(slices, [&](const grpc::Slice& slice) {
    return reinterpret_cast<const std::byte*>(slice.begin()) == data && slice.size() == 50'000;
  }));
}

TEST(TensorMemoryTest, AJoinedMessageOutlivesThePool) {
  auto pool = std::make_unique<BufferPool>(1 << 20);
  const std::string content = Pattern(5000);
  const grpc::ByteBuffer joined = MakeResponse(*pool, {content}).Join();
  pool.reset();
  v1::ApplyProjectionResponse response;
  ASSERT_TRUE(response.ParseFromString(wire::BytesOf(joined)));
  EXPECT_EQ(response.outputs(0).output().data(), content);
}

// Payloads whose tensor got other bytes later, or that were taken out before.
TEST(TensorMemoryTest, PayloadsThatAreNotSentGoWithTheMessage) {
  BufferPool pool(0);
  Response response = MakeResponse(pool, {Pattern(50'000), Pattern(60'000)});
  response.message.mutable_outputs()->RemoveLast();
  const PooledBuffer taken = response.payloads.Release(response.payloads.Add(pool.Take(5000)));
  const grpc::ByteBuffer joined = std::move(response).Join();
  EXPECT_GE(pool.used_bytes(), 55'000);
  EXPECT_LT(pool.used_bytes(), 80'000);
}

// Where the lengths of the messages around a tensor take one byte more.
TEST(TensorMemoryTest, LengthsAroundThePowersOf128) {
  BufferPool pool(0);
  for (const size_t around : {0u, 128u, 16384u}) {
    for (size_t size = around < 60 ? 0 : around - 60; size < around + 4; ++size) {
      const std::string content = Pattern(size);
      v1::ApplyProjectionResponse expected;
      expected.add_adapters()->set_name("a");
      expected.add_outputs()->set_path("q_proj");
      expected.mutable_outputs(0)->mutable_output()->set_data(content);
      Response response = MakeResponse(pool, {content});
      if (size == 0) response.message.mutable_outputs(0)->mutable_output()->clear_data();
      ASSERT_EQ(wire::BytesOf(std::move(response).Join()), expected.SerializeAsString()) << size;
    }
  }
}

}  // namespace
}  // namespace adapterd
