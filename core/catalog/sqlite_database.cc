#include "core/catalog/sqlite_database.h"

#include <fmt/format.h>
#include <sqlite3.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

// SQLite calls only ENOSPC "full"; a quota, or a limit on the size of a file, is the same to us.
bool IsOutOfSpace(int system_error) {
  return system_error == ENOSPC || system_error == EDQUOT || system_error == EFBIG;
}

// errno of the last failure. sqlite3_system_errno stays 0 when writing the log fails (3.40).
int SystemError(sqlite3* handle) {
  sqlite3_file* log = nullptr;
  int error = 0;
  if (sqlite3_file_control(handle, "main", SQLITE_FCNTL_JOURNAL_POINTER, &log) == SQLITE_OK &&
      log != nullptr && log->pMethods != nullptr &&
      log->pMethods->xFileControl(log, SQLITE_FCNTL_LAST_ERRNO, &error) == SQLITE_OK &&
      error != 0) {
    return error;
  }
  return sqlite3_system_errno(handle);
}

Reason ReasonOf(int code, int system_error) {
  switch (code & 0xff) {  // the rest of an extended code only says where
    case SQLITE_FULL:
      return Reason::kStorageFull;
    case SQLITE_IOERR:
      return IsOutOfSpace(system_error) ? Reason::kStorageFull : Reason::kSourceUnavailable;
    case SQLITE_BUSY:
    case SQLITE_CANTOPEN:
    case SQLITE_LOCKED:
    case SQLITE_NOMEM:
    case SQLITE_PERM:
    case SQLITE_PROTOCOL:
    case SQLITE_READONLY:
      return Reason::kSourceUnavailable;
    case SQLITE_CORRUPT:
    case SQLITE_ERROR:  // all statements are constant: what does not compile misses its table
    case SQLITE_NOTADB:
    case SQLITE_TOOBIG:  // nothing so large is written
      return Reason::kStoreCorrupt;
    default:
      return Reason::kInternal;
  }
}

std::string_view Advice(Reason reason) {
  switch (reason) {
    case Reason::kStorageFull:
      return "; free some space there";
    case Reason::kStoreCorrupt:
      return "; restore a backup, or move the file away and load the adapters again";
    default:
      return "";
  }
}

}  // namespace

void SqliteStatement::Finalizer::operator()(sqlite3_stmt* statement) const {
  sqlite3_finalize(statement);
}

bool SqliteStatement::Bind(int index, std::string_view text) {
  // A null pointer would bind NULL.
  const char* data = text.data() == nullptr ? "" : text.data();
  return sqlite3_bind_text64(statement_.get(), index, data, text.size(), SQLITE_STATIC,
                             SQLITE_UTF8) == SQLITE_OK;
}

bool SqliteStatement::Bind(int index, int64_t value) {
  return sqlite3_bind_int64(statement_.get(), index, value) == SQLITE_OK;
}

absl::Status SqliteStatement::Finish(bool bound) {
  absl::Status status;
  if (bound) {
    int code = SQLITE_ROW;
    while (code == SQLITE_ROW) code = sqlite3_step(statement_.get());
    if (code != SQLITE_DONE) status = database_->LastError();
  } else {
    status = database_->LastError();
  }
  sqlite3_reset(statement_.get());
  sqlite3_clear_bindings(statement_.get());
  return status;
}

absl::StatusOr<bool> SqliteStatement::Next() {
  const int code = sqlite3_step(statement_.get());
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return database_->LastError();
}

absl::StatusOr<std::string_view> SqliteStatement::Text(int column) const {
  if (sqlite3_column_type(statement_.get(), column) != SQLITE_TEXT) {
    return WrongType(column, "text");
  }
  const auto* data = reinterpret_cast<const char*>(sqlite3_column_text(statement_.get(), column));
  if (data == nullptr) return database_->LastError();  // out of memory
  return std::string_view(data,
                          static_cast<size_t>(sqlite3_column_bytes(statement_.get(), column)));
}

absl::StatusOr<int64_t> SqliteStatement::Integer(int column) const {
  if (sqlite3_column_type(statement_.get(), column) != SQLITE_INTEGER) {
    return WrongType(column, "an integer");
  }
  return sqlite3_column_int64(statement_.get(), column);
}

absl::Status SqliteStatement::WrongType(int column, std::string_view expected) const {
  const int type = sqlite3_column_type(statement_.get(), column);
  const char* names[] = {"an integer", "a real number", "text", "a blob", "NULL"};  // from 1 on
  return Error(Reason::kStoreCorrupt, fmt::format("column {}: expected {}, found {}",
                                                  sqlite3_column_name(statement_.get(), column),
                                                  expected, names[type - SQLITE_INTEGER]));
}

void SqliteDatabase::Closer::operator()(sqlite3* handle) const { sqlite3_close(handle); }

absl::StatusOr<std::unique_ptr<SqliteDatabase>> SqliteDatabase::Open(const std::string& path,
                                                                     std::string title) {
  std::unique_ptr<SqliteDatabase> database(new SqliteDatabase(std::move(title)));
  sqlite3* handle = nullptr;
  const int code =
      sqlite3_open_v2(path.c_str(), &handle, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, nullptr);
  database->handle_.reset(handle);  // there even after most errors
  if (code != SQLITE_OK) return database->LastError();
  if (sqlite3_db_readonly(handle, "main") == 1) {  // SQLite falls back to that by itself
    return Error(Reason::kSourceUnavailable,
                 fmt::format("{}: the file may be read but not written", database->title_));
  }
  sqlite3_extended_result_codes(handle, 1);
  sqlite3_busy_timeout(handle, kBusyTimeoutMs);
  sqlite3_limit(handle, SQLITE_LIMIT_LENGTH, kMaxRowBytes);
  RETURN_IF_ERROR(database->Execute("PRAGMA cell_size_check = ON"));  // sees damage earlier
  return database;
}

absl::Status SqliteDatabase::Execute(const std::string& sql) {
  if (sqlite3_exec(handle_.get(), sql.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK) {
    return absl::OkStatus();
  }
  return LastError();
}

absl::StatusOr<SqliteStatement> SqliteDatabase::Prepare(std::string_view sql) {
  sqlite3_stmt* statement = nullptr;
  if (sqlite3_prepare_v3(handle_.get(), sql.data(), static_cast<int>(sql.size()),
                         SQLITE_PREPARE_PERSISTENT, &statement, nullptr) != SQLITE_OK) {
    return LastError();
  }
  return SqliteStatement(this, statement);
}

absl::StatusOr<SqliteStatement> SqliteDatabase::OnlyRow(std::string_view sql) {
  ASSIGN_OR_RETURN(SqliteStatement statement, Prepare(sql));
  ASSIGN_OR_RETURN(const bool found, statement.Next());
  if (found) return statement;
  return Error(Reason::kInternal, fmt::format("{}: no answer to {}", title_, sql));
}

absl::StatusOr<int64_t> SqliteDatabase::QueryInteger(std::string_view sql) {
  ASSIGN_OR_RETURN(const SqliteStatement row, OnlyRow(sql));
  return row.Integer(0);
}

absl::StatusOr<std::string> SqliteDatabase::QueryText(std::string_view sql) {
  ASSIGN_OR_RETURN(const SqliteStatement row, OnlyRow(sql));
  ASSIGN_OR_RETURN(const std::string_view text, row.Text(0));
  return std::string(text);
}

void SqliteDatabase::RollBack() {
  if (sqlite3_get_autocommit(handle_.get()) != 0) return;
  sqlite3_exec(handle_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
}

absl::Status SqliteDatabase::LastError() const {
  const int code = sqlite3_extended_errcode(handle_.get());
  const std::string message = sqlite3_errmsg(handle_.get());  // lost with the next call
  const int system_error = (code & 0xff) == SQLITE_IOERR ? SystemError(handle_.get()) : 0;
  const Reason reason = ReasonOf(code, system_error);
  const std::string cause =
      system_error == 0 ? "" : ": " + std::generic_category().message(system_error);
  return Error(reason, fmt::format("{}: {}{} (SQLite code {}){}", title_, message, cause, code,
                                   Advice(reason)));
}

}  // namespace adapterd
