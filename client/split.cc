#include "client/split.h"

#include <algorithm>
#include <string>
#include <utility>

#include "client/convert.h"

namespace qmatmul::client {
namespace {

// More than what a request holds besides its rows and the names in it, and than what one output's
// description holds in a reply (a digest, two names, eight numbers).
constexpr int64_t kRequestFixedBytes = 512;
constexpr int64_t kOutputFixedBytes = 1024;
// A zero point is a varint of at most this.
constexpr int64_t kZeroPointBytes = 5;
constexpr int64_t kIndexBytes = 4;
constexpr int64_t kActivationScaleBytes = 4;

// A tensor's bytes are n * bits, far below 2^63 for every n that a server has (2^24).
int64_t BytesOf(DataType dtype, int64_t count) { return count * BitsOf(dtype) / 8; }

// What a message needs for every row, and besides.
struct Need {
  int64_t row = 0;
  int64_t fixed = 0;

  int64_t RowsThatFit(int64_t bytes) const {
    return row == 0 ? INT64_MAX : std::max<int64_t>(0, bytes - fixed) / row;
  }
};

Need RequestNeed(const Question& question) {
  const Activations& a = *question.activations;
  Need need{.row = BytesOf(a.dtype, a.k), .fixed = kRequestFixedBytes};
  if (a.scales.count() > 1) need.row += BytesOf(a.scales.dtype, 1);
  if (a.zero_points.size() > 1) need.row += kZeroPointBytes;
  for (const Product& product : question.products)
    need.fixed += static_cast<int64_t>(product.weight.size()) + 64;
  for (const ChainStep& step : question.options->then)
    need.fixed += static_cast<int64_t>(step.weight.size()) + 64;
  need.fixed +=
      static_cast<int64_t>(question.options->device.size() + question.options->kernel.size());
  return need;
}

const OutputSpec& LastSpec(const Question& question, size_t i) {
  return question.options->then.empty() ? question.products[i].output
                                        : question.options->then.back().output;
}

Need ReplyNeed(const Question& question, std::span<const int64_t> columns) {
  Need need;
  for (size_t i = 0; i < question.products.size(); ++i) {
    const OutputSpec& spec = LastSpec(question, i);
    const size_t into_bytes = question.products[i].into.size();
    if (into_bytes > 0 && question.activations->rows > 0)
      need.row += static_cast<int64_t>(into_bytes) / question.activations->rows;
    else need.row += BytesOf(spec.dtype, spec.top_k > 0 ? spec.top_k : columns[i]);
    need.row += spec.top_k * kIndexBytes + kActivationScaleBytes;
    need.fixed += kOutputFixedBytes;
  }
  return need;
}

Status RowTooLarge(const Need& request, const Need& reply, int64_t limit) {
  const int64_t request_bytes = request.row + request.fixed, reply_bytes = reply.row + reply.fixed;
  Status status = Refusal(Code::kResourceExhausted, "ROW_TOO_LARGE",
                          "one row needs a request of " + std::to_string(request_bytes) +
                              " bytes and a reply of " + std::to_string(reply_bytes) +
                              ", the limit of a message is " + std::to_string(limit) +
                              ": raise message_bytes_max here and at the server");
  status.metadata = {{"request_bytes", std::to_string(request_bytes)},
                     {"reply_bytes", std::to_string(reply_bytes)},
                     {"limit", std::to_string(limit)}};
  return status;
}

// Only what is cut must have agreeing sizes; the rest is the server's to refuse.
Status CheckCut(const Question& question) {
  const Activations& a = *question.activations;
  const auto count_fits = [&a](int64_t count) { return count <= 1 || count == a.rows; };
  const auto refuse = [&a](const char* reason, const std::string& what, int64_t has) {
    return Refusal(Code::kInvalidArgument, reason,
                   what + ", not " + std::to_string(has) + ", for " + std::to_string(a.rows) +
                       " rows that must be sent in parts");
  };
  const int64_t data_bytes = static_cast<int64_t>(a.data.size());
  if (data_bytes % a.rows != 0 || data_bytes / a.rows != BytesOf(a.dtype, a.k))
    return refuse("BYTES_MISMATCH", "activations.data has rows * k elements", data_bytes);
  if (!count_fits(a.scales.count()))
    return refuse("SCALE_COUNT", "activations have 1 scale or one a row", a.scales.count());
  const int64_t zero_points = static_cast<int64_t>(a.zero_points.size());
  if (!count_fits(zero_points))
    return refuse("ZERO_POINT_COUNT", "activations have 1 zero point or one a row", zero_points);
  for (const Product& product : question.products) {
    const int64_t bytes = static_cast<int64_t>(product.into.size());
    if (bytes % a.rows != 0)
      return refuse("BUFFER_SIZE", "Product::into has rows * n elements", bytes);
  }
  return {};
}

void AppendRows(const Output& part, Output* whole) {
  if (!whole->shape.empty() && !part.shape.empty()) whole->shape[0] += part.shape[0];
  whole->bytes += part.bytes;
  whole->indices.insert(whole->indices.end(), part.indices.begin(), part.indices.end());
  whole->activation_scales.insert(whole->activation_scales.end(), part.activation_scales.begin(),
                                  part.activation_scales.end());
  Execution& e = whole->execution;
  e.batch_rows = std::max(e.batch_rows, part.execution.batch_rows);
  e.padded_rows += part.execution.padded_rows;
  e.queue_ns = std::max(e.queue_ns, part.execution.queue_ns);
  e.compute_ns += part.execution.compute_ns;
  e.verified = e.verified && part.execution.verified;
  e.overflow_count += part.execution.overflow_count;
}

bool ReplaceFirst(std::string* text, const std::string& from, const std::string& to) {
  const size_t at = text->find(from);
  if (at != std::string::npos) text->replace(at, from.size(), to);
  return at != std::string::npos;
}

int64_t NumberIn(const Status& status, const std::string& key) {
  const auto found = status.metadata.find(key);
  return found == status.metadata.end() ? 0 : std::strtoll(found->second.c_str(), nullptr, 10);
}

// "outputs[3].overflow" → 3.
int64_t OutputOf(const Status& status) {
  for (const FieldViolation& violation : status.fields)
    if (violation.field.starts_with("outputs["))
      return std::strtoll(violation.field.c_str() + 8, nullptr, 10);
  const size_t at = status.message.find("of output ");
  return at == std::string::npos ? 0 : std::strtoll(status.message.c_str() + at + 10, nullptr, 10);
}

// The error of a part, said of the whole request's rows.
Status ShiftRows(Status status, RowRange rows) {
  const auto row = status.metadata.find("row");
  bool shifted = false;
  if (row != status.metadata.end()) {
    const std::string whole = std::to_string(NumberIn(status, "row") + rows.begin);
    shifted = ReplaceFirst(&status.message, "row " + row->second, "row " + whole);
    row->second = whole;
  }
  if (!shifted && status.code == Code::kInvalidArgument)
    status.message += " (in the part of rows " + std::to_string(rows.begin) + " to " +
                      std::to_string(rows.end - 1) + ", counted from its first)";
  return status;
}

// In one piece the first output that overflows is named, with its first row, and how often it does
// anywhere.
Status JoinOverflows(const std::vector<Part>& parts) {
  const auto overflows = [](const Part& part) { return NeedsOtherParts(part.status); };
  auto first = std::find_if(parts.begin(), parts.end(), overflows);  // there is one
  int64_t count = 0;
  for (auto part = first; part != parts.end();
       part = std::find_if(part + 1, parts.end(), overflows)) {
    if (OutputOf(part->status) < OutputOf(first->status)) {
      first = part;
      count = 0;
    }
    if (OutputOf(part->status) == OutputOf(first->status)) count += NumberIn(part->status, "count");
  }
  Status status = ShiftRows(first->status, first->rows);
  const auto part_count = status.metadata.find("count");
  if (part_count != status.metadata.end()) {
    if (status.message.starts_with(part_count->second + " "))
      status.message.replace(0, part_count->second.size(), std::to_string(count));
    part_count->second = std::to_string(count);
  }
  return status;
}

}  // namespace

Result<std::vector<RowRange>> PlanRows(const Question& question, std::span<const int64_t> columns,
                                       int64_t message_bytes_max) {
  const int64_t rows = question.activations->rows;
  const Need request = RequestNeed(question), reply = ReplyNeed(question, columns);
  const int64_t fit =
      std::min(request.RowsThatFit(message_bytes_max), reply.RowsThatFit(message_bytes_max));
  if (rows <= fit || rows < 1) return std::vector<RowRange>{question.all()};
  if (fit == 0) return RowTooLarge(request, reply, message_bytes_max);
  if (Status status = CheckCut(question); !status.ok()) return status;
  const int64_t count = (rows - 1) / fit + 1;
  std::vector<RowRange> parts;
  for (int64_t i = 0; i < count; ++i)
    parts.push_back({rows / count * i + std::min(i, rows % count),
                     rows / count * (i + 1) + std::min(i + 1, rows % count)});
  return parts;
}

const std::string& WidthWeight(const Question& question, size_t i) {
  return question.options->then.empty() ? question.products[i].weight
                                        : question.options->then.back().weight;
}

bool NeedsOtherParts(const Status& status) {
  return status.code == Code::kOutOfRange && status.reason == "OVERFLOW";
}

Result<std::vector<Output>> Join(const Question& question, std::vector<Part> parts) {
  int attempts = 0;
  const Part* failed = nullptr;
  for (const Part& part : parts) {
    attempts += part.status.attempts;
    if (part.status.ok() || part.cancelled) continue;
    // Any other error comes before an overflow, as it does in one piece: it is found before computing.
    if (failed == nullptr || (NeedsOtherParts(failed->status) && !NeedsOtherParts(part.status)))
      failed = &part;
  }
  if (failed != nullptr) {
    Status status = parts.size() == 1                 ? failed->status
                    : NeedsOtherParts(failed->status) ? JoinOverflows(parts)
                                                      : ShiftRows(failed->status, failed->rows);
    status.attempts = attempts;
    return status;
  }
  std::vector<Output> whole = std::move(parts.front().outputs);
  for (size_t i = 0; i < whole.size(); ++i) {
    const size_t row_bytes = whole[i].bytes.size() /
                             static_cast<size_t>(std::max<int64_t>(1, parts.front().rows.rows()));
    whole[i].bytes.reserve(row_bytes * static_cast<size_t>(question.activations->rows));
    for (size_t p = 1; p < parts.size(); ++p) {
      const Output& part = parts[p].outputs[i];
      if (part.execution.digest != whole[i].execution.digest) {
        Status status = Refusal(Code::kAborted, "WEIGHT_REPLACED",
                                "weight '" + whole[i].execution.weight +
                                    "' moved to other content while the call's " +
                                    std::to_string(parts.size()) + " parts ran; call again");
        status.attempts = attempts;
        return status;
      }
      AppendRows(part, &whole[i]);
    }
    whole[i].attempts = attempts;
  }
  return whole;
}

}  // namespace qmatmul::client
