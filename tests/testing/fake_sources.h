// Adapters without files, whose loads stop where a test wants them to.
#ifndef ADAPTERD_TESTS_TESTING_FAKE_SOURCES_H_
#define ADAPTERD_TESTS_TESTING_FAKE_SOURCES_H_

#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "core/adapter/adapter_reader.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/tensor/convert.h"

namespace adapterd {

// Long enough for any machine; a test that waits this long has failed.
inline constexpr absl::Duration kTestPatience = absl::Seconds(120);

// Waits until `condition` holds, then returns with `mutex` held as before.
inline void AwaitOrThrow(absl::Mutex& mutex, const absl::Condition& condition)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
  if (!mutex.AwaitWithTimeout(condition, kTestPatience)) {
    throw std::runtime_error("a test has waited in vain");
  }
}

// Until `condition` holds. For what tells nobody when it changes; anything else can be waited for.
template <typename Condition>
void SpinUntil(Condition condition) {
  const absl::Time deadline = absl::Now() + kTestPatience;
  while (!condition()) {
    if (absl::Now() > deadline) throw std::runtime_error("a test has waited in vain");
    std::this_thread::yield();
  }
}

// Threads pass while it is open and stand before it while it is closed. Any thread.
class Gate {
 public:
  void Close() {
    absl::MutexLock lock(&mutex_);
    open_ = false;
  }
  void Open() {
    absl::MutexLock lock(&mutex_);
    open_ = true;
  }
  void Pass() {
    absl::MutexLock lock(&mutex_);
    ++waiting_;
    mutex_.Await(absl::Condition(&open_));
    --waiting_;
  }
  // Until a thread stands before it.
  void AwaitVisitor() {
    absl::MutexLock lock(&mutex_);
    AwaitOrThrow(mutex_, absl::Condition(this, &Gate::HasVisitor));
  }

 private:
  bool HasVisitor() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return waiting_ > 0; }

  absl::Mutex mutex_;
  bool open_ ABSL_GUARDED_BY(mutex_) = true;
  int waiting_ ABSL_GUARDED_BY(mutex_) = 0;
};

struct FakeModule {
  std::string path = "model.layers.0.self_attn.q_proj";
  int64_t rank = 2;
  int64_t in_features = 8;
  int64_t out_features = 4;
  DType dtype = DType::kF32;
  float a_value = 0.5f;  // of all elements of A
};

// What a source holds at one moment.
struct FakeContent {
  std::string text = "1";  // stands for the bytes: equal text gives equal revisions
  std::string base_model = "base";
  std::vector<FakeModule> modules = {{}};
  int64_t changed_ns = 1;             // of its one file; long ago
  int64_t base_changed_ns = 1;        // of the base checkpoint that a request names
  std::string understood_as;          // not in the revision, but in the derived digest
  std::vector<std::string> warnings;  // that Read finds
  absl::Status open_error;
  absl::Status read_error;                              // of both kinds of Read, after the gate
  absl::Status weights_sha_error;                       // of WeightsDigest
  std::function<void(const Cancellation&)> while_read;  // called by both reads, after the gate
};

// One source: its content, its gates, and what was done with it.
struct FakeSource {
  uint64_t inode = 0;  // of its file
  absl::Mutex mutex;
  FakeContent content ABSL_GUARDED_BY(mutex);
  Gate open_gate;
  Gate read_gate;
  Gate digest_gate;
  Gate weights_sha_gate;
  std::atomic<int> opens{0};
  std::atomic<int> reads{0};         // Read into a sink
  std::atomic<int> digests{0};       // Read without one
  std::atomic<int> weights_shas{0};  // WeightsDigest
};

inline std::string HexDigestOf(const std::string& text) {
  Sha256 digest;
  digest.Update(text);
  return digest.FinishHex();
}

inline std::shared_ptr<const AdapterManifest> ManifestOf(const FakeContent& content) {
  AdapterManifest manifest;
  manifest.method = "lora";
  manifest.base_model = content.base_model;
  std::vector<std::string> paths;
  for (const FakeModule& module : content.modules) {
    ModuleInfo info;
    info.path = module.path;
    info.rank = module.rank;
    info.in_features = module.in_features;
    info.out_features = module.out_features;
    info.alpha = static_cast<double>(module.rank);
    info.scale = 1;
    info.lora_a_dtype = info.lora_b_dtype = module.dtype;
    info.lora_a_tensor = module.path + ".lora_A.weight";
    info.lora_b_tensor = module.path + ".lora_B.weight";
    info.parameter = content.understood_as;
    manifest.modules.push_back(std::move(info));
    paths.push_back(module.path);
  }
  for (const ModuleInfo& info : manifest.modules) {
    manifest.file_bytes += info.parameter_count() * FloatBytes(info.lora_a_dtype);
  }
  manifest.index = ModuleIndex(paths);
  return std::make_shared<const AdapterManifest>(std::move(manifest));
}

inline ContentDigest DigestOf(const FakeContent& content) {
  return {HexDigestOf("revision " + content.text), HexDigestOf("file " + content.text)};
}

// Every element is `value`.
inline Tensor FilledTensor(DType dtype, const Shape& shape, float value) {
  AlignedBuffer buffer(*ByteCount(dtype, shape));
  const int64_t count = *ElementCount(shape);
  const std::vector<float> values(count, value);
  ConvertFromF32(values.data(), dtype, buffer.data(), count);
  return Tensor(dtype, shape, std::move(buffer));
}

inline ModuleTensors TensorsOf(const FakeModule& module) {
  ModuleTensors tensors;
  tensors.lora_a = FilledTensor(module.dtype, {module.rank, module.in_features}, module.a_value);
  tensors.lora_b = FilledTensor(module.dtype, {module.out_features, module.rank}, 0.25f);
  return tensors;
}

// A reads-as-it-was-opened snapshot, as an open file is.
class FakeReader final : public AdapterReader {
 public:
  FakeReader(FakeSource& source, FakeContent content, bool with_base = false)
      : source_(source), content_(std::move(content)), manifest_(ManifestOf(content_)) {
    identity_.files = {{"weights", {1, source.inode, 1, content_.changed_ns, content_.changed_ns}}};
    if (!with_base) return;
    const int64_t changed_ns = content_.base_changed_ns;
    identity_.files.push_back({"base", {2, 1, 1, changed_ns, changed_ns}});
  }

  const std::shared_ptr<const AdapterManifest>& manifest() const override { return manifest_; }
  const SourceIdentity& identity() const override { return identity_; }
  const BoundBase* base() const override { return nullptr; }

  absl::StatusOr<std::string> Read(ThreadPool&, const Cancellation& cancellation, ModuleSink* sink,
                                   ProblemList& problems) override {
    ++(sink != nullptr ? source_.reads : source_.digests);
    (sink != nullptr ? source_.read_gate : source_.digest_gate).Pass();
    RETURN_IF_ERROR(Check(cancellation, problems));
    for (size_t i = 0; sink != nullptr && i < content_.modules.size(); ++i) {
      ModuleTensors tensors = TensorsOf(content_.modules[i]);
      RETURN_IF_ERROR(sink->Take(i, tensors));
    }
    return DigestOf(content_).revision;
  }

  absl::StatusOr<std::string> WeightsDigest(const Cancellation& cancellation) override {
    ++source_.weights_shas;
    source_.weights_sha_gate.Pass();
    RETURN_IF_ERROR(cancellation.Check());
    RETURN_IF_ERROR(content_.weights_sha_error);
    return DigestOf(content_).weights_sha256;
  }

 private:
  absl::Status Check(const Cancellation& cancellation, ProblemList& problems) const {
    if (content_.while_read) content_.while_read(cancellation);
    RETURN_IF_ERROR(cancellation.Check());
    problems.Add(content_.read_error);
    for (const std::string& message : content_.warnings) {
      Problem warning;
      warning.severity = Severity::kWarning;
      warning.message = message;
      problems.Add(std::move(warning));
    }
    return content_.read_error;
  }

  FakeSource& source_;
  const FakeContent content_;
  const std::shared_ptr<const AdapterManifest> manifest_;
  SourceIdentity identity_;
};

// All sources of a test, by path. Outlives every opener and reader made by it.
class FakeSources {
 public:
  // Makes or changes a source.
  FakeSource& Put(const std::string& path, FakeContent content = {}) {
    FakeSource& source = (*this)[path];
    absl::MutexLock lock(&source.mutex);
    source.content = std::move(content);
    return source;
  }

  FakeSource& operator[](const std::string& path) {
    absl::MutexLock lock(&mutex_);
    std::unique_ptr<FakeSource>& source = sources_[path];
    if (source == nullptr) {
      source = std::make_unique<FakeSource>();
      source->inode = sources_.size();
    }
    return *source;
  }

  // So that nothing waits for ever when a test has failed half-way.
  void OpenAllGates() {
    absl::MutexLock lock(&mutex_);
    for (auto& [path, source] : sources_) {
      for (Gate* gate : {&source->open_gate, &source->read_gate, &source->digest_gate,
                         &source->weights_sha_gate}) {
        gate->Open();
      }
    }
  }

  AdapterOpener opener() {
    return [this](const SourceSpec& spec, ProblemList& problems) { return Open(spec, problems); };
  }

 private:
  std::unique_ptr<AdapterReader> Open(const SourceSpec& spec, ProblemList& problems) {
    FakeSource* source = Find(spec.source);
    if (source == nullptr) {
      problems.Add(Error(Reason::kSourceNotFound, "no source \"" + spec.source + "\""));
      return nullptr;
    }
    ++source->opens;
    source->open_gate.Pass();
    absl::MutexLock lock(&source->mutex);
    FakeContent content = source->content;
    if (!content.open_error.ok()) {
      problems.Add(content.open_error);
      return nullptr;
    }
    if (!spec.base_model.empty()) content.base_model = spec.base_model;
    return std::make_unique<FakeReader>(*source, std::move(content), !spec.base_checkpoint.empty());
  }

  FakeSource* Find(const std::string& path) {
    absl::MutexLock lock(&mutex_);
    const auto found = sources_.find(path);
    return found == sources_.end() ? nullptr : found->second.get();
  }

  absl::Mutex mutex_;
  std::map<std::string, std::unique_ptr<FakeSource>> sources_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_TESTING_FAKE_SOURCES_H_
