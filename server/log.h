// The server's log: start, stop, register, delete, refusals. Never a line a request: numbers go to
// metrics.
//
// Why a door of its own: the logging library's headers cost more to compile than the rest of a
// small file. Thread-safety: Log may be called from any thread; SetUpLog before any thread exists.
#pragma once

#include <cstdint>
#include <string>

namespace qmatmul {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarn, kError };

// `format` is "text" or "json", `level` "debug", "info", "warn" or "error"; lines go to stderr.
void SetUpLog(const std::string& format, const std::string& level);
void Log(LogLevel level, const std::string& message);

}  // namespace qmatmul
