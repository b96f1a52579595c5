// One tensor at a time: how much of it is in memory.
#include "core/merge/tensor_merge.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "core/formats/checkpoint.h"
#include "core/formats/scoped_fd.h"
#include "core/tensor/convert.h"
#include "tests/testing/checkpoint_builder.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

// The real disk, which remembers the largest write.
class MeasuringDisk final : public Disk {
 public:
  int64_t WriteAt(int file, int64_t offset, std::span<const std::byte> bytes) override {
    largest = std::max(largest, static_cast<int64_t>(bytes.size()));
    return Disk::WriteAt(file, offset, bytes);
  }
  int64_t largest = 0;
};

class TensorMergeTest : public ::testing::Test {
 protected:
  // Of BF16 ones and twos.
  static std::string Halves(int64_t elements) {
    std::string bytes(static_cast<size_t>(2 * elements), '\0');
    for (int64_t i = 0; i < elements; ++i) {
      const uint16_t bits = i % 3 == 0 ? 0x4000 : 0x3f80;
      std::memcpy(bytes.data() + 2 * i, &bits, sizeof(bits));
    }
    return bytes;
  }

  // What conversion to F32 writes.
  std::string Convert(const Shape& shape, const std::string& bytes) {
    CheckpointBuilder().AddBytes("t", shape, DType::kBF16, bytes).Write(dir_, "m");
    const Checkpoint source =
        Checkpoint::Open(SourceRoots::Open({{"", dir_.path().string()}})->OpenFolder("m").value())
            .value();
    OutputTensor tensor;
    tensor.name = "t";
    tensor.source = source.Find("t");
    tensor.dtype = DType::kF32;
    tensor.shape = shape;
    const auto folder = dir_.path() / "out";
    std::filesystem::create_directory(folder);
    std::filesystem::remove(folder / "t");
    const ScopedFd parent(disk_.OpenFolder(AT_FDCWD, folder));
    const ScopedFd file(disk_.CreateFile(parent.get(), "t"));
    const Cancellation cancellation;
    const TensorWriting writing{source,       kernels_, pool_,         disk_,
                                cancellation, false,    [](int64_t) {}};
    EXPECT_THAT(WriteTensor(tensor, {file.get(), 0, "t"}, writing).status(), IsOk());
    return ReadFile(folder / "t");
  }

  TempDir dir_;
  MeasuringDisk disk_;
  Kernels kernels_;
  ThreadPool pool_{"help", 2, PrepareComputeThread};
};

TEST_F(TensorMergeTest, ConversionHoldsABlockWhateverTheShape) {
  constexpr int64_t kMost = int64_t{4} << 20;  // a block of BF16 in F32
  // Fused experts, each of 4 MB; a vector of that size; kernels; one row.
  const Shape shapes[] = {{2, 1024, 2048}, {2'000'001}, {70, 30, 3, 3}, {5, 7}};
  for (const Shape& shape : shapes) {
    SCOPED_TRACE(ShapeString(shape));
    disk_.largest = 0;
    const int64_t elements = ElementCount(shape).value();
    const std::string halves = Halves(elements);
    const std::string written = Convert(shape, halves);
    std::string expected(static_cast<size_t>(4 * elements), '\0');
    ConvertToF32(DType::kBF16, reinterpret_cast<const std::byte*>(halves.data()),
                 reinterpret_cast<float*>(expected.data()), elements);
    EXPECT_EQ(written, expected);
    EXPECT_LE(disk_.largest, kMost);
  }
}

}  // namespace
}  // namespace adapterd
