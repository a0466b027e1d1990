#include "client/cli/failure.h"

#include <string_view>

namespace qmatmul::cli {
namespace {

using client::Code;

struct WayOut {
  std::string_view reason;
  std::string_view text;
};

// What to type next, for the refusals that a command line can cure.
constexpr WayOut kWaysOut[] = {
    {"WEIGHT_UNKNOWN", "`qmatmul list` shows the names that are registered"},
    {"WEIGHT_EXISTS", "add --replace to move the name to the new content"},
    {"WEIGHT_ID", "an id is 1 to 128 of A-Z a-z 0-9 . _ - and starts with a letter or digit"},
    {"ARITHMETIC_MISSING", "add --arithmetic W8A8 (with --dynamic or --scales) or W8A32"},
    {"QUANTIZATION_SPEC", "W8A8 on float activations takes --dynamic or --scales, W8A32 neither"},
    {"OUTPUT_SPEC",
     "raw sums (INT32, and INT8 or INT16 without --out-scale) take no bias, ReLU or "
     "scale: add --skip-bias, or ask for F32, or give --out-scale"},
    {"OVERFLOW", "ask for a wider --out, or --overflow SATURATE or WRAP"},
    {"KERNEL_UNKNOWN", "`qmatmul explain` and `qmatmul doctor` name the kernels"},
    {"KERNEL_UNSUPPORTED", "leave --kernel out to let the server choose"},
    {"ROW_TOO_LARGE",
     "start the server with a larger message_bytes_max, and give --message-bytes-max here"},
    {"WEIGHT_MEMORY", "delete weights, or start the server with a larger weight memory"},
};

std::string WayOutOf(const client::Status& status, const std::string& server) {
  for (const WayOut& way_out : kWaysOut)
    if (way_out.reason == status.reason) return std::string(way_out.text);
  if (!status.reason.empty()) {
    if (status.retry_after.count() == 0) return {};
    return "try again in " + std::to_string(status.retry_after.count()) + " ms";
  }
  switch (status.code) {
    case Code::kUnavailable:
      return "is a server listening on " + server +
             "? start one with `qmatmul-server`, or name another with --server or QMATMUL_SERVER";
    case Code::kDeadlineExceeded: return "give it longer with --timeout SECONDS";
    case Code::kResourceExhausted:
      return "a message is over the transport's limit (64 MiB unless configured): send fewer rows "
             "a call";
    case Code::kUnimplemented:
      return "is " + server + " a qmatmul server? `qmatmul doctor` says more";
    default: return {};
  }
}

}  // namespace

Failure::Failure(const client::Status& status, const std::string& server)
    : std::runtime_error(status.ToString()),
      exit_code_(ExitCodeOf(status.code)),
      way_out_(WayOutOf(status, server)),
      status_(status) {}

int ExitCodeOf(Code code) {
  switch (code) {
    case Code::kOk: return kExitOk;
    case Code::kUnavailable:
    case Code::kDeadlineExceeded:
    case Code::kCancelled: return kExitUnreachable;
    case Code::kNotFound: return kExitNotFound;
    case Code::kInternal:
    case Code::kDataLoss:
    case Code::kUnknown: return kExitServer;
    default: return kExitRefused;
  }
}

}  // namespace qmatmul::cli
