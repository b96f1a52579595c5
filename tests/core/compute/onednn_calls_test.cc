// That oneDNN does the arithmetic, and that nothing is allocated for a request around it.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <latch>
#include <mutex>

#include "core/compute/base_product.h"
#include "oneapi/dnnl/dnnl.h"
#include "tests/core/compute/projection_fixture.h"

namespace {

std::atomic<bool> counting = false;
std::atomic<int64_t> allocations = 0;
std::atomic<int64_t> products = 0;
// dnnl_primitive_execute makes a map of its arguments, at least in 2.x. Nobody else may.
thread_local bool inside_onednn = false;

void Count() {
  if (counting.load(std::memory_order_relaxed) && !inside_onednn) ++allocations;
}

}  // namespace

// The C library's own names: everything that allocates, operator new too, goes through these.
extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* memory, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

void* malloc(size_t size) {
  Count();
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  Count();
  return __libc_calloc(count, size);
}
void* realloc(void* memory, size_t size) {
  Count();
  return __libc_realloc(memory, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  Count();
  return __libc_memalign(alignment, size);
}

dnnl_status_t dnnl_primitive_execute(const_dnnl_primitive_t primitive, dnnl_stream_t stream,
                                     int count, const dnnl_exec_arg_t* arguments) {
  static const auto execute = reinterpret_cast<decltype(&dnnl_primitive_execute)>(
      dlsym(RTLD_NEXT, "dnnl_primitive_execute"));
  ++products;
  inside_onednn = true;
  const dnnl_status_t status = execute(primitive, stream, count, arguments);
  inside_onednn = false;
  return status;
}
}

namespace adapterd {
namespace {

constexpr int64_t kIn = 1024;
constexpr int64_t kOut = 1500;

// One request for two modules, with every kind of segment: one adapter, none, two of them, and many
// single rows.
class OneDnnCallsTest : public ::testing::TestWithParam<DType> {
 protected:
  OneDnnCallsTest() {
    for (const int64_t rank : {16, 8, 33, 80}) {
      pairs_.emplace_back(GetParam(), GetParam(), PairShape{kIn, rank, kOut}, 7);
      packed_.push_back(pairs_.back().Pack(GetParam()));
    }
    for (TestMatrix& output : outputs_) {
      ProjectionTarget target;
      target.output = output.mutable_view();
      targets_.push_back(target);
    }
    targets_[1].base_output = base_.view();
  }

  void AddSegment(int64_t rows, const std::vector<int>& pairs) {
    for (ProjectionTarget& target : targets_) {
      ProjectionSegment segment = {rows, {}};
      for (const int pair : pairs) segment.terms.push_back({packed_[pair].get(), 0.5});
      target.segments.push_back(segment);
    }
  }

  absl::Status Apply(ThreadPool& pool) {
    return ApplyProjection(SharedKernels(), pool, input_.view(), targets_, cancellation_);
  }

  // Has this thread and all of the pool compute the whole request, whichever part of it they get
  // later.
  void WarmUp(ThreadPool& pool) {
    ThreadPool nobody("nobody", 1);
    std::latch all_threads(kThreads);
    std::latch done(kThreads);
    std::mutex mutex;
    for (int thread = 0; thread < kThreads; ++thread) {
      pool.Submit([&] {
        all_threads.arrive_and_wait();  // so that no thread takes two of these
        {
          const std::lock_guard one_by_one(mutex);  // they write one output
          EXPECT_THAT(Apply(nobody), IsOk());
        }
        done.count_down();
      });
    }
    done.wait();
    EXPECT_THAT(Apply(nobody), IsOk());
  }

  static constexpr int kThreads = 2;
  static constexpr int64_t kRows = 200;
  const TestMatrix input_ = TestMatrix::Random(GetParam(), kRows, kIn, 1);
  const TestMatrix base_ = TestMatrix::Random(GetParam(), kRows, kOut, 2);
  std::vector<TestPair> pairs_;
  std::vector<std::unique_ptr<const PackedPair>> packed_;
  std::vector<TestMatrix> outputs_ = {TestMatrix(GetParam(), kRows, kOut),
                                      TestMatrix(GetParam(), kRows, kOut)};
  std::vector<ProjectionTarget> targets_;
  const Cancellation cancellation_;
};

INSTANTIATE_TEST_SUITE_P(Types, OneDnnCallsTest, ::testing::ValuesIn(kFloatTypes),
                         [](const auto& type) { return std::string(DTypeName(type.param)); });

TEST_P(OneDnnCallsTest, AWarmRequestAllocatesNothing) {
  AddSegment(100, {0});
  AddSegment(40, {});
  AddSegment(30, {1, 2});
  for (int i = 0; i < 30; ++i) AddSegment(1, {i % 3});
  ThreadPool pool("compute", kThreads, PrepareComputeThread);
  WarmUp(pool);
  bool ok = true;
  allocations = 0;
  counting = true;
  for (int call = 0; call < 100; ++call) ok = ok && Apply(pool).ok();
  counting = false;
  EXPECT_TRUE(ok);
  EXPECT_EQ(allocations, 0);
}

TEST_P(OneDnnCallsTest, WhatOurOwnLoopsDoNotTakeIsOneDnns) {
  AddSegment(kRows, {3});
  ThreadPool pool("compute", kThreads, PrepareComputeThread);
  ASSERT_THAT(Apply(pool), IsOk());
  products = 0;
  dnnl_set_verbose(1);
  testing::internal::CaptureStdout();
  ASSERT_THAT(Apply(pool), IsOk());
  const std::string log = testing::internal::GetCapturedStdout();
  dnnl_set_verbose(0);
  int64_t lines = 0;
  for (size_t at = 0; (at = log.find("exec,cpu,matmul,", at)) != std::string::npos; ++at) ++lines;
  EXPECT_EQ(lines, products) << log;
  // Two products of each module and block, of at most 64 rows.
  EXPECT_GE(lines, 2 * 2 * 4) << log;
}

// A decode step of a base model. More rows, and BF16 rows for a BF16 weight, are packed first.
TEST(BaseProductCallsTest, AWarmProductOfFewRowsAllocatesNothingAndNeedsNoOneDnn) {
  const auto weight = TestMatrix::Random(DType::kBF16, kOut, kIn, 1);
  const Nf4Matrix quantised(weight.view(), 64);
  const auto input = TestMatrix::Random(DType::kF32, 2, kIn, 2);
  std::vector<float> sums(2 * kOut);
  const BaseRun runs[] = {{1, {weight.view()}}, {1, {&quantised}}};
  ThreadPool nobody("nobody", 1);
  const Cancellation cancellation;
  const auto multiply = [&] {
    return MultiplyBase(SharedKernels(), nobody, input.view(), runs, sums.data(), cancellation)
        .ok();
  };
  ASSERT_TRUE(multiply());
  products = 0;
  allocations = 0;
  counting = true;
  bool ok = true;
  for (int call = 0; call < 100; ++call) ok = ok && multiply();
  counting = false;
  EXPECT_TRUE(ok);
  EXPECT_EQ(allocations, 0);
  EXPECT_EQ(products, 0);
}

}  // namespace
}  // namespace adapterd
