// A thin layer over SQLite: handles that close themselves, and errors of ours.
#ifndef ADAPTERD_CORE_CATALOG_SQLITE_DATABASE_H_
#define ADAPTERD_CORE_CATALOG_SQLITE_DATABASE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct sqlite3;
struct sqlite3_stmt;

namespace adapterd {

class SqliteDatabase;

// How long a write waits for another process that holds SQLite's write lock: an operator's shell.
// Readers (a backup) hold nothing up.
inline constexpr int kBusyTimeoutMs = 5000;

// What one row may have, written or read: a record is kilobytes, what is larger is none of ours.
inline constexpr int kMaxRowBytes = 16 << 20;

// A compiled statement. Used by one thread at a time, which is the database's too; the database
// outlives it.
class SqliteStatement {
 public:
  // Runs it from the start with these values (text or integers) for its question marks, to its end;
  // rows are not looked at. The values are used during the call only. Errors of SqliteDatabase.
  template <typename... Values>
  absl::Status Run(const Values&... values) {
    int index = 0;
    const bool bound = (Bind(++index, values) && ...);
    return Finish(bound);
  }

  // The next row of a query; false after the last. Errors of SqliteDatabase.
  absl::StatusOr<bool> Next();

  // Of the present row. STORE_CORRUPT when the column holds another type.
  absl::StatusOr<std::string_view> Text(int column) const;  // valid until Next
  absl::StatusOr<int64_t> Integer(int column) const;

 private:
  friend class SqliteDatabase;
  struct Finalizer {
    void operator()(sqlite3_stmt* statement) const;
  };

  SqliteStatement(const SqliteDatabase* database, sqlite3_stmt* statement)
      : database_(database), statement_(statement) {}

  bool Bind(int index, std::string_view text);
  bool Bind(int index, int64_t value);
  absl::Status Finish(bool bound);
  absl::Status WrongType(int column, std::string_view expected) const;

  const SqliteDatabase* database_;
  std::unique_ptr<sqlite3_stmt, Finalizer> statement_;
};

// One connection. Used by one thread at a time.
//
// Errors: STORAGE_FULL (also over a quota), STORE_CORRUPT (damaged, no database, or not our
// tables), SOURCE_UNAVAILABLE (cannot be read or written now), INTERNAL. Each message names the
// database, what was being done and what SQLite says of it.
class SqliteDatabase {
 public:
  // `path` is an existing file; `title` is what messages call it.
  static absl::StatusOr<std::unique_ptr<SqliteDatabase>> Open(const std::string& path,
                                                              std::string title);

  SqliteDatabase(const SqliteDatabase&) = delete;
  SqliteDatabase& operator=(const SqliteDatabase&) = delete;

  const std::string& title() const { return title_; }

  // One or more statements whose rows do not matter.
  absl::Status Execute(const std::string& sql);
  absl::StatusOr<SqliteStatement> Prepare(std::string_view sql);
  // The first column of the only row.
  absl::StatusOr<int64_t> QueryInteger(std::string_view sql);
  absl::StatusOr<std::string> QueryText(std::string_view sql);

  // Gives up a transaction that is still open. What fails about that shows in the next one.
  void RollBack();

  // The error of the call that just failed.
  absl::Status LastError() const;

 private:
  struct Closer {
    void operator()(sqlite3* handle) const;
  };

  explicit SqliteDatabase(std::string title) : title_(std::move(title)) {}

  absl::StatusOr<SqliteStatement> OnlyRow(std::string_view sql);

  const std::string title_;
  std::unique_ptr<sqlite3, Closer> handle_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_SQLITE_DATABASE_H_
