// What is made here becomes a content that reads as what was made.
#include "core/catalog/made_content.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "core/adapter/adapter_reader.h"
#include "core/adapter/new_adapter.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::NotNull;

class MadeContentTest : public ::testing::Test {
 protected:
  static FreshAdapter Fresh() {
    FreshAdapter fresh;
    fresh.geometry.hidden_size = 32;
    fresh.geometry.intermediate_size = 48;
    fresh.geometry.num_layers = 2;
    fresh.geometry.num_attention_heads = 4;
    fresh.geometry.num_key_value_heads = 2;
    fresh.geometry.vocab_size = 40;
    fresh.target_modules = {"q_proj", "gate_up_proj", "embed_tokens", "lm_head"};
    fresh.rank = 4;
    return fresh;
  }
  static MadeAdapter Made(const FreshAdapter& fresh) { return MakeFresh(fresh).value(); }

  absl::StatusOr<StoredContent> Store(const MadeAdapter& made) {
    return StoreMade(*store_, made, Cancellation());
  }

  std::unique_ptr<AdapterReader> Open(const std::string& key) {
    const auto roots = std::make_shared<const SourceRoots>(SourceRoots::Open({}).value());
    SourceSpec spec;
    spec.stored = key;
    auto reader = OpenFromRoots(roots, roots, store_->roots())(spec, problems_);
    EXPECT_THAT(problems_.ToStatus(), IsOk());
    return reader;
  }

  bool IsEmpty(const char* folder) const {
    return std::filesystem::is_empty(std::filesystem::path(dir_ / "store") / folder);
  }

  TempDir dir_;
  std::unique_ptr<ContentStore> store_ = ContentStore::Open(dir_ / "store").value();
  ProblemList problems_;
};

TEST_F(MadeContentTest, ReadsAsWhatWasMade) {
  for (const bool use_rslora : {false, true}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      FreshAdapter fresh = Fresh();
      fresh.use_rslora = use_rslora;
      fresh.dtype = dtype;
      const MadeAdapter made = Made(fresh);
      const auto stored = Store(made);
      ASSERT_THAT(stored, IsOk());
      const auto reader = Open(stored->key());
      ASSERT_THAT(reader, NotNull());
      const AdapterManifest& read = *reader->manifest();
      EXPECT_EQ(read.format, AdapterFormat::kCreated);
      EXPECT_EQ(read.method, made.manifest->method);
      ASSERT_EQ(read.modules.size(), made.manifest->modules.size());
      for (size_t i = 0; i < read.modules.size(); ++i) {
        const ModuleInfo& x = read.modules[i];
        const ModuleInfo& y = made.manifest->modules[i];
        EXPECT_EQ(x.path, y.path);
        EXPECT_EQ(x.kind, y.kind);
        EXPECT_EQ(x.in_features, y.in_features);
        EXPECT_EQ(x.out_features, y.out_features);
        EXPECT_EQ(x.rank, y.rank);
        EXPECT_EQ(x.alpha, y.alpha);
        EXPECT_EQ(x.scale, y.scale);
        EXPECT_EQ(x.lora_a_dtype, dtype);
        EXPECT_EQ(x.lora_a_tensor, y.lora_a_tensor);
        EXPECT_EQ(x.lora_b_tensor, y.lora_b_tensor);
      }
    }
  }
}

TEST_F(MadeContentTest, EqualAdaptersAreOneContent) {
  const auto first = Store(Made(Fresh()));
  const auto second = Store(Made(Fresh()));
  FreshAdapter other = Fresh();
  other.seed = 1;
  const auto third = Store(Made(other));
  ASSERT_THAT(third, IsOk());
  EXPECT_EQ(first->key(), second->key());
  EXPECT_NE(first->key(), third->key());
}

TEST_F(MadeContentTest, WhatIsCancelledLeavesNothing) {
  Cancellation cancellation;
  MadeAdapter made = Made(Fresh());
  made.tensors = [&cancellation, lookup = made.tensors](size_t module, TensorRole role) {
    if (module == 2) cancellation.Cancel();
    return lookup(module, role);
  };
  EXPECT_THAT(StoreMade(*store_, made, cancellation), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_TRUE(IsEmpty("incoming"));
  EXPECT_TRUE(IsEmpty("content"));
}

}  // namespace
}  // namespace adapterd
