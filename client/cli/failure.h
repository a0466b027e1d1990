// How a command of `qmatmul` gives up: Failure is thrown where the trouble is found and caught
// once, in main, which prints it and exits with its code. No exception leaves the program any other
// way.
//
// The exit codes are part of the program's interface: scripts branch on them, `qmatmul --help`
// lists them.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "client/status.h"

namespace qmatmul::cli {

enum ExitCode : int {
  kExitOk = 0,
  kExitNo = 1,           // the answer is no: not serving, a check of doctor failed
  kExitUsage = 2,        // unknown command, option or value
  kExitFile = 3,         // a local file cannot be read, written or understood
  kExitUnreachable = 4,  // UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED: trying again may help
  kExitRefused = 5,      // the server refuses the request as it is
  kExitNotFound = 6,     // NOT_FOUND: no such weight
  kExitServer = 7,       // INTERNAL, DATA_LOSS, UNKNOWN: the server's fault
};

class Failure : public std::runtime_error {
 public:
  Failure(int exit_code, const std::string& message, std::string way_out = {})
      : std::runtime_error(message), exit_code_(exit_code), way_out_(std::move(way_out)) {}
  // A call that failed; `server` is the address that was called.
  Failure(const client::Status& status, const std::string& server);

  int exit_code() const { return exit_code_; }
  // What the user can do about it; may be empty.
  const std::string& way_out() const { return way_out_; }
  // Set when a server (or the way to it) said no.
  const std::optional<client::Status>& status() const { return status_; }

 private:
  int exit_code_;
  std::string way_out_;
  std::optional<client::Status> status_;
};

int ExitCodeOf(client::Code code);

}  // namespace qmatmul::cli
