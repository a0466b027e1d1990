#include "client/cli/load_report.h"

#include <algorithm>

namespace qmatmul::cli {
namespace {

using client::LoadHistogram;
using client::LoadResult;

double PerSecond(const LoadResult& r, double amount) {
  return r.seconds > 0 ? amount / r.seconds : 0;
}

double Us(int64_t ns) { return static_cast<double>(ns) / 1e3; }

Json Percentiles(const LoadHistogram& h) {
  return {{"p50", Us(h.Percentile(50))}, {"p90", Us(h.Percentile(90))},
          {"p99", Us(h.Percentile(99))}, {"p99_9", Us(h.Percentile(99.9))},
          {"max", Us(h.max())},          {"mean", h.mean() / 1e3}};
}

Json ServerTimes(const LoadHistogram& queue, const LoadHistogram& compute) {
  return {{"queue_p50", Us(queue.Percentile(50))},     {"queue_p99", Us(queue.Percentile(99))},
          {"queue_mean", queue.mean() / 1e3},          {"compute_p50", Us(compute.Percentile(50))},
          {"compute_p99", Us(compute.Percentile(99))}, {"compute_mean", compute.mean() / 1e3}};
}

// Leaves of nested objects as (name, value); lists and the errors are left to JSON.
void Flatten(const Json& json, const std::string& prefix,
             std::vector<std::pair<std::string, Json>>* leaves) {
  for (const auto& [key, value] : json.items()) {
    if (value.is_array() || key == "errors") continue;
    if (value.is_object()) Flatten(value, prefix + key + "_", leaves);
    else leaves->emplace_back(prefix + key, value);
  }
}

std::string CsvCell(const Json& value) {
  std::string text = value.is_string() ? value.get<std::string>() : value.dump();
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + '"';
}

}  // namespace

Json ToJson(const LoadReport& report) {
  const LoadResult& r = *report.result;
  Json json = {{"server", report.server}, {"rows", report.mix}, {"weights", report.weights}};
  json["in_flight"] = report.in_flight;
  json["rate"] = report.rate;
  json["arrivals"] = report.rate <= 0 ? "closed" : report.poisson ? "poisson" : "constant";
  json["stream"] = report.stream;
  json["connections"] = report.connections;
  json["unix_start_ns"] = r.unix_start_ns;
  json["seconds"] = r.seconds;
  json["sent"] = r.sent;
  json["ok"] = r.ok;
  json["failed"] = r.failed;
  json["qps"] = PerSecond(r, static_cast<double>(r.ok_in_window));
  json["rows_per_s"] = PerSecond(r, static_cast<double>(r.rows_in_window));
  json["gops"] = PerSecond(r, r.ops_in_window) / 1e9;
  json["latency_us"] = Percentiles(r.latency_ns);
  json["server_us"] = ServerTimes(r.queue_ns, r.compute_ns);
  for (const auto& [name, us] : report.server_page_us) json["page_us"][name] = us;
  json["batch_rows_mean"] = r.batch_rows_mean;
  json["request_bytes_mean"] = r.request_bytes_mean;
  json["reply_bytes_mean"] = r.reply_bytes_mean;
  if (report.latency_limit_ms > 0) {
    json["latency_limit_ms"] = report.latency_limit_ms;
    json["goodput_qps"] = PerSecond(r, static_cast<double>(r.in_limit));
  }
  if (report.rate > 0) {
    json["late_sends"] = r.late;
    json["late_max_us"] = Us(r.late_max_ns);
  }
  json["verified"] = r.checked;
  json["wrong"] = r.wrong;
  json["error_latency_us"] = Percentiles(r.error_latency_ns);
  json["errors"] = r.errors;
  for (const auto& [rows, of_rows] : r.by_rows) {
    Json one = {{"rows", rows}, {"ok", of_rows.latency_ns.count()}};
    one["latency_us"] = Percentiles(of_rows.latency_ns);
    one["server_us"] = ServerTimes(of_rows.queue_ns, of_rows.compute_ns);
    json["by_rows"].push_back(one);
  }
  return json;
}

std::string CsvHeader(const Json& report) {
  std::vector<std::pair<std::string, Json>> leaves;
  Flatten(report, "", &leaves);
  std::string line;
  for (const auto& [name, value] : leaves) line += (line.empty() ? "" : ",") + name;
  return line + "\n";
}

std::string CsvLine(const Json& report) {
  std::vector<std::pair<std::string, Json>> leaves;
  Flatten(report, "", &leaves);
  std::string line;
  for (const auto& [name, value] : leaves) line += (line.empty() ? "" : ",") + CsvCell(value);
  return line + "\n";
}

TextTable LoadTable() {
  return TextTable({"M", "LOAD", "CALLS/S", "ROWS/S", "GOPS", "P50", "P90", "P99", "P99.9", "MAX",
                    "QUEUE", "COMPUTE", "BATCH ROWS", "FAILED"});
}

void AddTo(TextTable* table, const LoadReport& report) {
  const LoadResult& r = *report.result;
  const std::string load = report.rate > 0 ? FixedText(report.rate, 0) + "/s " +
                                                 (report.poisson ? "poisson" : "constant")
                                           : std::to_string(report.in_flight) + " in flight";
  std::vector<std::string> row = {report.mix, load,
                                  FixedText(PerSecond(r, static_cast<double>(r.ok_in_window)), 0),
                                  FixedText(PerSecond(r, static_cast<double>(r.rows_in_window)), 0),
                                  FixedText(PerSecond(r, r.ops_in_window) / 1e9, 1)};
  for (double percent : {50.0, 90.0, 99.0, 99.9})
    row.push_back(DurationText(r.latency_ns.Percentile(percent)));
  row.push_back(DurationText(r.latency_ns.max()));
  row.push_back(DurationText(static_cast<int64_t>(r.queue_ns.mean())));
  row.push_back(DurationText(static_cast<int64_t>(r.compute_ns.mean())));
  row.push_back(FixedText(r.batch_rows_mean, 1));
  row.push_back(std::to_string(r.failed));
  table->Add(std::move(row));
}

std::string Remarks(const LoadReport& report) {
  const LoadResult& r = *report.result;
  std::string text;
  for (const auto& [name, count] : r.errors)
    text += "  " + std::to_string(count) + " x " + name + "\n";
  if (!r.first_error.empty()) text += "  the first: " + r.first_error + "\n";
  if (r.late > 0)
    text += "  " + std::to_string(r.late) + " of " + std::to_string(r.sent) +
            " calls left more than 1 ms after their time, the latest by " +
            DurationText(r.late_max_ns) + "; latencies count from the intended time\n";
  if (report.latency_limit_ms > 0)
    text += "  goodput: " + FixedText(PerSecond(r, static_cast<double>(r.in_limit)), 1) +
            " calls/s within " + FixedText(report.latency_limit_ms, 1) + " ms\n";
  for (const auto& [name, us] : report.server_page_us)
    text += "  the server's page: " + name + " " + FixedText(us, 1) + " us a call\n";
  if (r.checked > 0)
    text += "  " + std::to_string(r.wrong) + " of " + std::to_string(r.checked) +
            " replies that were looked at are wrong\n";
  if (!text.empty()) text = report.mix + " rows:\n" + text;
  return text;
}

}  // namespace qmatmul::cli
