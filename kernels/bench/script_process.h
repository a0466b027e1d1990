// A Python script beside this process, spoken to over pipes: for peers that have no C++ door.
//
// Thread-safety: one thread. Ownership: the process ends with the object.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>

namespace qmatmul::bench {

class ScriptProcess {
 public:
  // Nothing runs before Start. Both are paths; the script's name stands in what goes wrong.
  ScriptProcess(std::string python, std::string script);
  ~ScriptProcess();
  ScriptProcess(const ScriptProcess&) = delete;
  ScriptProcess& operator=(const ScriptProcess&) = delete;

  // Once; true again when it runs. The interpreter says on stderr why it cannot.
  bool Start();
  // Writes a line, without its end, and bytes after it.
  void Say(std::string_view line);
  void Give(const void* bytes, size_t size);
  // The next line it says, without its end; empty when it is gone.
  std::string Line();
  // False when it is gone before it said so much.
  bool Take(void* bytes, size_t size);

 private:
  const std::string python_;
  const std::string script_;
  pid_t pid_ = 0;
  FILE* to_ = nullptr;
  FILE* from_ = nullptr;
};

}  // namespace qmatmul::bench
