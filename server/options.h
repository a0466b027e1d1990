// Every limit and knob of the server, in one table (options.cc).
//
// A value comes from the first of: flag (--queue-requests-max 64), environment
// (QMATMUL_QUEUE_REQUESTS_MAX), config file (queue_requests_max = 64), default. Flags and file keys
// that are not in the table are errors; an environment variable that is not is a warning, since
// schedulers set variables named after services.
//
// Options is a plain value. LoadOptions reads its arguments and the file they name, and nothing
// else.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace qmatmul {

// A limit for the device of this id, or for those of this kind: "cuda:0", "vulkan".
struct DeviceBytes {
  std::string device;
  int64_t bytes = 0;
};

struct Options {
  std::string config;
  std::string listen;
  std::string http_listen;
  std::string log_format;
  std::string log_level;
  std::string disable_kernels;
  std::string calibration_file;
  std::string vulkan_devices;
  std::string pipeline_cache_file;
  int64_t message_bytes_max = 0;
  int64_t streams_per_connection_max = 0;
  int64_t stream_requests_max = 0;
  int64_t queue_requests_max = 0;
  int64_t queue_ms_max = 0;
  int64_t queue_rows_max = 0;
  int64_t queue_weight_rows_max = 0;
  int64_t queue_weight_bytes_max = 0;
  int64_t batch_rows_max = 0;
  int64_t batch_us_max = 0;
  int64_t batch_delay_us_max = 0;
  int64_t tile_us_max = 0;
  int64_t in_flight_bytes_max = 0;
  int64_t reply_pool_bytes_max = 0;
  int64_t weight_bytes_max = 0;
  std::vector<DeviceBytes> device_weight_bytes_max;
  int64_t uploads_max = 0;
  int64_t threads = 0;
  int64_t team_spin_us_max = 0;
  int64_t inline_us_max = 0;
  int64_t grace_ms = 0;
  int64_t drain_ms_max = 0;
  bool metrics = false;
};

struct LoadedOptions {
  Options options;
  // Where each value came from: "default", "file /etc/qmatmul.conf:3", "environment
  // QMATMUL_LISTEN", "flag".
  std::map<std::string_view, std::string> origin;
  std::vector<std::string> warnings;
  bool help = false;
  bool version = false;
  bool print_config = false;
};

// `arguments` without the program's name; `environment` as "NAME=value". False: `error` says which
// key or value is wrong, what is allowed, and where it stood.
bool LoadOptions(std::span<const char* const> arguments, std::span<const char* const> environment,
                 LoadedOptions* loaded, std::string* error);

// The table as --help prints it.
std::string HelpText();
// One line an option: "queue_requests_max = 1024    # default". A config file that sets the same.
std::string ConfigText(const LoadedOptions& loaded);

}  // namespace qmatmul
