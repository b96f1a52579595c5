// AdapterRegistry::Load in process: from files in the page cache to READY.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bench/data.h"
#include "bench/file_floor.h"
#include "bench/gguf_file.h"
#include "bench/load_memory.h"
#include "bench/loader.h"
#include "bench/peft_folder.h"
#include "bench/suite.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr int kLlamaLayers = 32;
constexpr int kTenMegabytesLayers = 20;
constexpr double kTimeBar = 1.5;
constexpr double kPaddedMemoryBar = 2.2;  // rank 16 is padded to 32
constexpr double kMemoryBar = 1.2;
constexpr double kManyTensorsBar = 1.1;  // the same, within what a busy machine adds
constexpr MeasureOptions kFull{absl::Seconds(10), 11};
constexpr MeasureOptions kQuick{absl::Seconds(2), 5};

// One adapter on disk, and a registry that loads it.
struct Subject {
  static absl::StatusOr<std::unique_ptr<Subject>> Create(std::vector<PeftModule> modules,
                                                         int64_t rank) {
    auto subject = std::make_unique<Subject>();
    ASSIGN_OR_RETURN(subject->folder, PeftFolder::Create(modules, DType::kBF16, rank));
    RETURN_IF_ERROR(subject->Open(*subject->folder, std::move(modules), rank));
    return subject;
  }

  static absl::StatusOr<std::unique_ptr<Subject>> CreateGguf(std::vector<PeftModule> modules,
                                                             GgufType type, int64_t rank) {
    auto subject = std::make_unique<Subject>();
    ASSIGN_OR_RETURN(subject->gguf, GgufFile::Create(modules, type, rank));
    subject->dtype = type == GgufType::kF16 ? "f16" : "q8_0";
    RETURN_IF_ERROR(subject->Open(*subject->gguf, std::move(modules), rank));
    return subject;
  }

  template <typename Files>
  absl::Status Open(const Files& files, std::vector<PeftModule> its_modules, int64_t its_rank) {
    modules = std::move(its_modules);
    rank = its_rank;
    ASSIGN_OR_RETURN(loader, Loader::Create(files.root(), files.adapter()));
    ASSIGN_OR_RETURN(floor, FileFloor::Open(files.weights()));
    return Verify();
  }

  // What is timed is a load of all of it.
  absl::Status Verify() const {
    RETURN_IF_ERROR(loader->Load());
    ASSIGN_OR_RETURN(const AdapterSnapshot adapter, loader->Snapshot());
    if (adapter.state != AdapterState::kReady || adapter.manifest->file_bytes != floor->bytes() ||
        adapter.manifest->modules.size() != modules.size() ||
        adapter.digest.weights_sha256 != floor->sha256()) {
      return absl::InternalError("what was loaded is not what was written");
    }
    return loader->Unload();
  }

  size_t tensors() const { return 2 * modules.size(); }
  std::string shape() const {
    return fmt::format("{} x r={} {:.0f}MB{}", tensors(), rank,
                       static_cast<double>(floor->bytes()) / 1e6, gguf ? " GGUF" : "");
  }

  std::vector<PeftModule> modules;
  int64_t rank = 0;
  std::string dtype = "bf16";
  std::unique_ptr<PeftFolder> folder;  // or
  std::unique_ptr<GgufFile> gguf;
  std::unique_ptr<Loader> loader;
  std::unique_ptr<FileFloor> floor;
};

// Beside reading and digesting the same bytes; the slower of these two is what a load cannot beat.
absl::Status AgainstFloor(SuiteContext& context, ThreadPool& pool, Subject& subject,
                          std::optional<double> bar) {
  Loader& loader = *subject.loader;
  FileFloor& floor = *subject.floor;
  const auto load = [&] { return loader.Load(); };
  const auto unload = [&] { return loader.Unload(); };
  const auto read = [&] { return floor.Read(); };
  const auto read_on_all = [&] { return floor.ReadOn(pool); };
  const auto free = [&] { return floor.Free(); };
  const auto digest = [&] { return floor.DigestOn(pool); };
  const auto load_and_await = [&]() -> absl::Status {
    RETURN_IF_ERROR(loader.Load());
    return loader.AwaitAnswer();
  };
  const Contestant contestants[] = {
      {load, unload}, {read, free}, {read_on_all, free}, {digest}, {load_and_await, unload}};
  ASSIGN_OR_RETURN(const std::vector<Timing> timings,
                   MeasureInTurns(context.quick ? kQuick : kFull, contestants));
  const bool one_is_faster = timings[1].median_us <= timings[2].median_us;
  const Timing& reading = one_is_faster ? timings[1] : timings[2];
  const Timing& digesting = timings[3];
  const bool reading_counts = reading.median_us >= digesting.median_us;
  const auto add = [&](std::string name, std::string reference, const Comparison& comparison,
                       bool counts) {
    context.report.Add({"load",
                        std::move(name),
                        subject.shape(),
                        subject.dtype,
                        std::move(reference),
                        comparison,
                        {counts ? bar : std::nullopt, {}}});
  };
  const std::string digest_name = fmt::format("SHA-256 on {} threads", pool.threads());
  add("Load",
      fmt::format("read, {} thread{}", one_is_faster ? 1 : pool.threads(),
                  one_is_faster || pool.threads() == 1 ? "" : "s"),
      {timings[0], reading}, reading_counts);
  add("Load", digest_name, {timings[0], digesting}, !reading_counts);
  add("Load, answered", digest_name, {timings[4], digesting}, false);
  return absl::OkStatus();
}

absl::Status Memory(SuiteContext& context, Subject& subject, double bar) {
  ASSIGN_OR_RETURN(const LoadMemory memory, MeasureLoadMemory(*subject.folder));
  const auto add = [&](std::string name, int64_t bytes) {
    context.report.Add(MemoryRow{"load", std::move(name), subject.shape(), "bf16", "weights file",
                                 bytes, subject.floor->bytes(), bar});
  };
  add("memory_bytes", memory.reserved_bytes);
  add("RssAnon", memory.anonymous_bytes);
  return absl::OkStatus();
}

// Twenty times as many tensors may not make each of them slower.
absl::Status ManyTensors(SuiteContext& context) {
  constexpr int64_t kRank = 8;
  ASSIGN_OR_RETURN(const auto many, Subject::Create(ExpertModules(25, 100), kRank));
  ASSIGN_OR_RETURN(const auto few, Subject::Create(ExpertModules(7, 16), kRank));
  const auto load_many = [&] { return many->loader->Load(); };
  const auto unload_many = [&] { return many->loader->Unload(); };
  const auto load_few = [&] { return few->loader->Load(); };
  const auto unload_few = [&] { return few->loader->Unload(); };
  const Contestant contestants[] = {{load_many, unload_many}, {load_few, unload_few}};
  ASSIGN_OR_RETURN(const std::vector<Timing> timings,
                   MeasureInTurns(context.quick ? kQuick : kFull, contestants));
  context.report.Add({"load",
                      "Load, a tensor",
                      many->shape(),
                      "bf16",
                      fmt::format("a tensor of {}", few->tensors()),
                      {timings[0] / static_cast<double>(many->tensors()),
                       timings[1] / static_cast<double>(few->tensors())},
                      {kManyTensorsBar, {}}});
  return absl::OkStatus();
}

}  // namespace

absl::Status RunLoadSuite(SuiteContext& context) {
  context.report.Begin("load", fmt::format("{} threads, files in the page cache, until READY; "
                                           "unloading is not timed. Memory: after the first use",
                                           context.threads));
  ThreadPool pool("bench", context.threads, PrepareComputeThread);
  {
    ASSIGN_OR_RETURN(const auto llama, Subject::Create(Llama7bModules(kLlamaLayers), 16));
    RETURN_IF_ERROR(AgainstFloor(context, pool, *llama, kTimeBar));
    RETURN_IF_ERROR(Memory(context, *llama, kPaddedMemoryBar));
  }
  {
    ASSIGN_OR_RETURN(const auto wider, Subject::Create(Llama7bModules(kLlamaLayers), 32));
    RETURN_IF_ERROR(Memory(context, *wider, kMemoryBar));
  }
  {
    ASSIGN_OR_RETURN(const auto small,
                     Subject::Create(Llama7bQueryValueModules(kTenMegabytesLayers), 16));
    RETURN_IF_ERROR(AgainstFloor(context, pool, *small, std::nullopt));
  }
  for (const auto& [type, rank] : {std::pair(GgufType::kF16, 16), std::pair(GgufType::kQ8_0, 32)}) {
    ASSIGN_OR_RETURN(const auto gguf,
                     Subject::CreateGguf(Llama7bModules(kLlamaLayers), type, rank));
    RETURN_IF_ERROR(AgainstFloor(context, pool, *gguf, kTimeBar));
  }
  return ManyTensors(context);
}

}  // namespace adapterd::bench
