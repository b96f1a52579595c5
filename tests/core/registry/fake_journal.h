// A journal in memory that fails when it is told to.
#ifndef ADAPTERD_TESTS_CORE_REGISTRY_FAKE_JOURNAL_H_
#define ADAPTERD_TESTS_CORE_REGISTRY_FAKE_JOURNAL_H_

#include <map>
#include <string>
#include <vector>

#include "core/registry/journal.h"
#include "tests/testing/fake_sources.h"

namespace adapterd {

// Any thread.
class FakeJournal final : public Journal {
 public:
  absl::Status Put(const AdapterRecord& record) override {
    put_gate.Pass();
    absl::MutexLock lock(&mutex_);
    ++puts_;
    if (!put_error_.ok()) return put_error_;
    records_[record.name] = record;
    return absl::OkStatus();
  }

  absl::Status Erase(const std::string& name) override {
    absl::MutexLock lock(&mutex_);
    ++erases_;
    if (!erase_error_.ok()) return erase_error_;
    records_.erase(name);
    return absl::OkStatus();
  }

  void FailPuts(const absl::Status& error) {
    absl::MutexLock lock(&mutex_);
    put_error_ = error;
  }
  void FailErases(const absl::Status& error) {
    absl::MutexLock lock(&mutex_);
    erase_error_ = error;
  }
  std::map<std::string, AdapterRecord> records() const {
    absl::MutexLock lock(&mutex_);
    return records_;
  }
  std::vector<AdapterRecord> all() const {
    std::vector<AdapterRecord> all;
    for (const auto& [name, record] : records()) all.push_back(record);
    return all;
  }
  int puts() const {
    absl::MutexLock lock(&mutex_);
    return puts_;
  }
  int erases() const {
    absl::MutexLock lock(&mutex_);
    return erases_;
  }

  Gate put_gate;

 private:
  mutable absl::Mutex mutex_;
  std::map<std::string, AdapterRecord> records_ ABSL_GUARDED_BY(mutex_);
  absl::Status put_error_ ABSL_GUARDED_BY(mutex_);
  absl::Status erase_error_ ABSL_GUARDED_BY(mutex_);
  int puts_ ABSL_GUARDED_BY(mutex_) = 0;
  int erases_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_CORE_REGISTRY_FAKE_JOURNAL_H_
