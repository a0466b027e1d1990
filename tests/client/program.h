// Runs a program to its end and keeps what it printed; or runs a server for as long as the object
// lives.
//
// Used by one thread.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace qmatmul::testing {

struct ProgramResult {
  int exit_code = -1;  // 128 + signal when a signal ended it
  std::string out;
  std::string err;
};

// words[0] is the program. `environment` holds NAME=value pairs that come before ours.
ProgramResult RunProgram(const std::vector<std::string>& words,
                         const std::vector<std::string>& environment = {});

// A real qmatmul-server on free ports of the loopback interface.
class ServerProcess {
 public:
  // Waits for the line that says it is ready; address() is empty when it never came. `environment` holds
  // NAME=value pairs that come before ours; what it logs goes to `log_path`, or where ours goes.
  explicit ServerProcess(const std::string& program, const std::vector<std::string>& flags = {},
                         const std::vector<std::string>& environment = {},
                         const std::string& log_path = {});
  ~ServerProcess();
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  const std::string& address() const { return address_; }
  // SIGTERM; the exit code, or 128 + signal. Once.
  int Stop();

 private:
  pid_t child_ = -1;
  std::string address_;
};

}  // namespace qmatmul::testing
