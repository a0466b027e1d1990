// What the commands of `qmatmul` print with: aligned tables, JSON, a progress bar, and the words
// for numbers. stdout carries the answer and nothing else; progress and errors go to stderr.
//
// Used by one thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "client/cli/failure.h"
#include "client/client.h"

namespace qmatmul::cli {

// Rows of cells, printed with every column as wide as its widest cell.
class TextTable {
 public:
  explicit TextTable(std::vector<std::string> header) : rows_{std::move(header)} {}
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string ToString() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// A bar on stderr while bytes move; silent unless stderr is a terminal. Erases itself when it goes.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  void Show(int64_t done_bytes, int64_t total_bytes);

 private:
  std::string label_;
  bool terminal_;
  int shown_permille_ = -1;
};

std::string BytesText(int64_t bytes);  // "16.0 MiB"
std::string DurationText(int64_t ns);  // "35.1 us"
std::string FixedText(double value, int decimals);

// The value, or the Failure that its status is.
template <class T>
T ValueOf(client::Result<T> result, const client::Client& client) {
  if (!result.ok()) throw Failure(result.status(), client.options().server);
  return std::move(*result);
}

}  // namespace qmatmul::cli
