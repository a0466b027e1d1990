#include "client/cli/console.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace qmatmul::cli {
namespace {

constexpr int kBarCells = 30;

// Columns a UTF-8 text takes on a terminal, as long as no character is wide.
size_t Width(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

}  // namespace

std::string TextTable::ToString() const {
  std::vector<size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], Width(row[i]));
  }
  std::string text;
  for (const auto& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i)
      line += row[i] + std::string(widths[i] - Width(row[i]) + 2, ' ');
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
  }
  return text;
}

ProgressBar::ProgressBar(std::string label)
    : label_(std::move(label)), terminal_(isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() {
  if (shown_permille_ >= 0) std::fputs("\r\x1b[K", stderr);
}

void ProgressBar::Show(int64_t done_bytes, int64_t total_bytes) {
  if (!terminal_ || total_bytes <= 0) return;
  const int permille = static_cast<int>(done_bytes * 1000 / total_bytes);
  if (permille == shown_permille_) return;
  shown_permille_ = permille;
  const int filled = permille * kBarCells / 1000;
  const std::string bar = std::string(static_cast<size_t>(filled), '#') +
                          std::string(static_cast<size_t>(kBarCells - filled), '-');
  std::fprintf(stderr, "\r%s [%s] %3d %% of %s", label_.c_str(), bar.c_str(), permille / 10,
               BytesText(total_bytes).c_str());
  std::fflush(stderr);
}

std::string FixedText(double value, int decimals) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.*f", decimals, value);
  return text;
}

std::string BytesText(int64_t bytes) {
  constexpr std::string_view kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return FixedText(value, unit == 0 ? 0 : 1) + " " + std::string(kUnits[unit]);
}

std::string DurationText(int64_t ns) {
  const double value = static_cast<double>(ns);
  if (ns < 1'000'000) return FixedText(value / 1e3, 1) + " us";
  if (ns < 1'000'000'000) return FixedText(value / 1e6, 2) + " ms";
  return FixedText(value / 1e9, 2) + " s";
}

}  // namespace qmatmul::cli
