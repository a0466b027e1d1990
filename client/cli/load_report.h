// What one load run is told as: a line of JSON, a line of CSV, or a row of a table. The three say
// the same figures; JSON also what each row count took and every error.
//
// Free functions without state.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "client/cli/console.h"
#include "client/cli/json.h"
#include "client/load_run.h"

namespace qmatmul::cli {

// One run and what it was of.
struct LoadReport {
  std::string server = {};
  std::string mix = {};      // "1", or "1:0.9,64:0.1"
  std::string weights = {};  // ids, or shapes
  int64_t in_flight = 0;     // closed loop
  double rate = 0;           // open loop
  bool poisson = true;
  bool stream = false;
  int connections = 1;
  double latency_limit_ms = 0;
  std::unique_ptr<client::LoadResult> result = {};
  // Mean microseconds of queue, compute, output and request from the server's own page, if asked.
  std::map<std::string, double> server_page_us = {};
};

Json ToJson(const LoadReport& report);

// "seconds,sent,…\n" and the values in the same order; nested names joined by '_'.
std::string CsvHeader(const Json& report);
std::string CsvLine(const Json& report);

TextTable LoadTable();
void AddTo(TextTable* table, const LoadReport& report);
// What the table has no column for: errors, late sends, wrong answers. Empty when all went well.
std::string Remarks(const LoadReport& report);

}  // namespace qmatmul::cli
