#include "server/options.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <variant>

namespace qmatmul {
namespace {

constexpr int64_t kKiB = 1024;
constexpr int64_t kMiB = 1024 * kKiB;
constexpr int64_t kGiB = 1024 * kMiB;
constexpr std::string_view kEnvironmentPrefix = "QMATMUL_";

using Member = std::variant<std::string Options::*, int64_t Options::*, bool Options::*,
                            std::vector<DeviceBytes> Options::*>;

// One option. Numbers take min … max and, for names with "bytes", a KiB, MiB or GiB suffix; words
// take one of `words`, or anything when it is empty; a list of limits takes numbers for devices.
struct Row {
  std::string_view name;
  Member member;
  std::string_view fallback;
  int64_t min;
  int64_t max;
  std::string_view words;
  std::string_view help;
};

// The table. A limit's value says what it protects; 0 never means "no limit".
constexpr Row kTable[] = {
    {"config", &Options::config, "", 0, 0, "", "file of `name = value` lines; # starts a comment"},
    {"listen", &Options::listen, "127.0.0.1:8500", 0, 0, "",
     "gRPC addresses, comma-separated: host:port (port 0: any free one) or unix:/path"},
    {"http_listen", &Options::http_listen, "127.0.0.1:8501", 0, 0, "",
     "host:port of /metrics; empty: none"},
    {"log_format", &Options::log_format, "text", 0, 0, "text|json",
     "log lines for people or for machines"},
    {"log_level", &Options::log_level, "info", 0, 0, "debug|info|warn|error",
     "least severe line that is logged"},
    {"disable_kernels", &Options::disable_kernels, "", 0, 0, "",
     "comma-separated kernel names or prefixes never to use: cpu.avx512_vnni,cpu.avx2"},
    {"calibration_file", &Options::calibration_file, "", 0, 0, "",
     "where the CPU's measured costs are kept between starts; empty: measured at every start"},
    {"vulkan_devices", &Options::vulkan_devices, "auto", 0, 0, "auto|all|off",
     "Vulkan devices to open; auto: those that are GPUs, not software, and that CUDA does not "
     "serve"},
    {"pipeline_cache_file", &Options::pipeline_cache_file, "", 0, 0, "",
     "where compiled Vulkan pipelines are kept between starts; empty: compiled at every start"},
    {"message_bytes_max", &Options::message_bytes_max, "64MiB", 2 * kMiB, 2 * kGiB - 1, "",
     "largest request, and largest reply; a chunk of an upload takes 1 MiB and some"},
    {"streams_per_connection_max", &Options::streams_per_connection_max, "1024", 1, 1 << 20, "",
     "calls in flight on one connection; more wait in the client"},
    {"stream_requests_max", &Options::stream_requests_max, "64", 1, 1 << 20, "",
     "requests of one StreamMatMul not yet answered; the next is read when one has gone out"},
    {"queue_requests_max", &Options::queue_requests_max, "1024", 1, 1 << 20, "",
     "requests waiting for one device; more are refused with QUEUE_FULL"},
    {"queue_ms_max", &Options::queue_ms_max, "500", 1, 3'600'000, "",
     "predicted wait of a request; when 64 wait for the device, those beyond it are refused with "
     "QUEUE_FULL"},
    {"queue_rows_max", &Options::queue_rows_max, "1048576", 1, int64_t{1} << 32, "",
     "rows waiting for one device; more are refused with QUEUE_FULL"},
    {"queue_weight_rows_max", &Options::queue_weight_rows_max, "262144", 1, int64_t{1} << 32, "",
     "… waiting for the same weights, save that one request always may"},
    {"queue_weight_bytes_max", &Options::queue_weight_bytes_max, "512MiB", kMiB, int64_t{1} << 50,
     "", "input and output bytes waiting for the same weights, so too"},
    {"batch_rows_max", &Options::batch_rows_max, "512", 1, 1 << 20, "",
     "rows that run together; 1: no batches"},
    {"batch_us_max", &Options::batch_us_max, "10000", 1, 10'000'000, "",
     "predicted work of one batch; up to 32 rows may take longer"},
    {"batch_delay_us_max", &Options::batch_delay_us_max, "0", 0, 1'000'000, "",
     "how long a batch that is not full waits for more rows on an idle device"},
    {"tile_us_max", &Options::tile_us_max, "2000", 1, 10'000'000, "",
     "predicted work of the tiles that a large request is cut into while small ones come"},
    {"in_flight_bytes_max", &Options::in_flight_bytes_max, "1GiB", kMiB, int64_t{1} << 50, "",
     "input and output bytes of all requests in flight; more are refused with IN_FLIGHT_BYTES"},
    {"reply_pool_bytes_max", &Options::reply_pool_bytes_max, "64MiB", 0, int64_t{1} << 50, "",
     "memory of sent replies that is kept for the next ones"},
    {"weight_bytes_max", &Options::weight_bytes_max, "0", 0, int64_t{1} << 50, "",
     "packed weights on one device; 0: three quarters of its memory"},
    {"device_weight_bytes_max", &Options::device_weight_bytes_max, "", 0, int64_t{1} << 50, "",
     "the same for some devices, by id or kind: cuda:0=40GiB,vulkan=2GiB; 0: none there"},
    {"uploads_max", &Options::uploads_max, "16", 1, 1024, "", "weights uploaded at the same time"},
    {"threads", &Options::threads, "0", 0, 4096, "",
     "compute team of the CPU; 0: what affinity and quota allow"},
    {"team_spin_us_max", &Options::team_spin_us_max, "0", 0, 10'000, "",
     "how long an idle team member spins before it parks"},
    {"inline_us_max", &Options::inline_us_max, "20", 0, 1000, "",
     "calls predicted shorter run on the RPC thread; about what a hand-off costs"},
    {"grace_ms", &Options::grace_ms, "1000", 0, 600'000, "",
     "after SIGTERM: time between health NOT_SERVING and refusing new calls"},
    {"drain_ms_max", &Options::drain_ms_max, "30000", 0, 3'600'000, "",
     "after SIGTERM: longest wait for calls in flight before they are cancelled"},
    {"metrics", &Options::metrics, "on", 0, 0, "", "on or off: counting itself, and /metrics"},
};

const Row* FindRow(std::string_view name) {
  const auto row = std::find_if(std::begin(kTable), std::end(kTable),
                                [&](const Row& r) { return r.name == name; });
  return row == std::end(kTable) ? nullptr : row;
}

// "queue-requests-max" and "QUEUE_REQUESTS_MAX" are the row queue_requests_max.
std::string RowName(std::string_view text) {
  std::string name(text);
  for (char& c : name) {
    if (c == '-') c = '_';
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return name;
}

std::string FlagName(std::string_view name) {
  std::string flag = "--" + std::string(name);
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

std::string EnvironmentName(std::string_view name) {
  std::string variable(kEnvironmentPrefix);
  for (const char c : name) variable += c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  return variable;
}

std::string_view Trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

bool ParseNumber(const Row& row, std::string_view text, int64_t* value, std::string* error) {
  const bool takes_suffix = row.name.find("bytes") != std::string_view::npos;
  int64_t unit = 1;
  std::string_view digits = text;
  for (const auto& [suffix, bytes] : {std::pair{"KiB", kKiB}, {"MiB", kMiB}, {"GiB", kGiB}}) {
    if (!takes_suffix || !digits.ends_with(suffix)) continue;
    digits = Trim(digits.substr(0, digits.size() - 3));
    unit = bytes;
  }
  int64_t number = 0;
  const auto [end, code] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  const bool parsed =
      code == std::errc() && end == digits.data() + digits.size() && !digits.empty();
  if (parsed && number >= 0 && number <= row.max / unit && number * unit >= row.min) {
    *value = number * unit;
    return true;
  }
  *error = std::string(row.name) + " = \"" + std::string(text) + "\" must be a whole number from " +
           std::to_string(row.min) + " to " + std::to_string(row.max) +
           (takes_suffix ? " (KiB, MiB, GiB may follow)" : "");
  return false;
}

bool ParseDeviceBytes(const Row& row, std::string_view text, std::vector<DeviceBytes>* list,
                      std::string* error) {
  list->clear();
  while (!Trim(text).empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    const std::string_view item = Trim(text.substr(0, comma));
    text.remove_prefix(std::min(comma + 1, text.size()));
    const size_t equals = item.find('=');
    const std::string device(Trim(item.substr(0, equals)));
    if (equals == std::string_view::npos || device.empty()) {
      *error = std::string(row.name) + ": \"" + std::string(item) +
               "\" must be a device's id or kind and a number: cuda:0=40GiB,vulkan=2GiB";
      return false;
    }
    if (std::any_of(list->begin(), list->end(),
                    [&](const DeviceBytes& other) { return other.device == device; })) {
      *error = std::string(row.name) + " names " + device + " twice";
      return false;
    }
    int64_t bytes = 0;
    if (!ParseNumber(row, Trim(item.substr(equals + 1)), &bytes, error)) {
      *error += ", for " + device;
      return false;
    }
    list->push_back({device, bytes});
  }
  return true;
}

bool ParseSwitch(const Row& row, std::string_view text, bool* value, std::string* error) {
  *value = text == "on" || text == "true" || text == "1";
  if (*value || text == "off" || text == "false" || text == "0") return true;
  *error = std::string(row.name) + " = \"" + std::string(text) + "\" must be on or off";
  return false;
}

bool ParseWord(const Row& row, std::string_view text, std::string* value, std::string* error) {
  *value = text;
  const std::string list = "|" + std::string(row.words) + "|";
  if (row.words.empty() || list.find("|" + *value + "|") != std::string::npos) return true;
  *error = std::string(row.name) + " = \"" + *value + "\" must be one of " + std::string(row.words);
  return false;
}

bool Set(const Row& row, std::string_view text, const std::string& origin, LoadedOptions* loaded,
         std::string* error) {
  loaded->origin[row.name] = origin;
  Options& options = loaded->options;
  if (const auto* word = std::get_if<std::string Options::*>(&row.member))
    return ParseWord(row, text, &(options.**word), error);
  if (const auto* number = std::get_if<int64_t Options::*>(&row.member))
    return ParseNumber(row, text, &(options.**number), error);
  if (const auto* list = std::get_if<std::vector<DeviceBytes> Options::*>(&row.member))
    return ParseDeviceBytes(row, text, &(options.**list), error);
  return ParseSwitch(row, text, &(options.*std::get<bool Options::*>(row.member)), error);
}

// What the command line says, by row, not yet applied: the file it names comes first.
struct Flags {
  std::map<const Row*, std::string> values;
};

bool ReadFlags(std::span<const char* const> arguments, LoadedOptions* loaded, Flags* flags,
               std::string* error) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view argument = arguments[i];
    bool* const action = argument == "--help"           ? &loaded->help
                         : argument == "--version"      ? &loaded->version
                         : argument == "--print-config" ? &loaded->print_config
                                                        : nullptr;
    if (action != nullptr) {
      *action = true;
      continue;
    }
    const size_t equals = argument.find('=');
    const std::string_view flag = argument.substr(0, equals);
    const Row* row = flag.starts_with("--") ? FindRow(RowName(flag.substr(2))) : nullptr;
    if (row == nullptr) {
      *error = "unknown argument \"" + std::string(flag) + "\"; --help lists what there is";
      return false;
    }
    if (equals == std::string_view::npos && i + 1 == arguments.size()) {
      *error = std::string(flag) + " needs a value";
      return false;
    }
    flags->values[row] =
        equals == std::string_view::npos ? arguments[++i] : argument.substr(equals + 1);
  }
  return true;
}

bool ReadFile(const std::string& path, LoadedOptions* loaded, std::string* error) {
  std::ifstream file(path);
  if (!file) {
    *error = "config file " + path + " cannot be read";
    return false;
  }
  std::map<const Row*, int> seen;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const std::string_view text = Trim(std::string_view(line).substr(0, line.find('#')));
    if (text.empty()) continue;
    const std::string place = "file " + path + ":" + std::to_string(number);
    const size_t equals = text.find('=');
    const std::string key(Trim(text.substr(0, equals)));
    const Row* row = equals == std::string_view::npos ? nullptr : FindRow(RowName(key));
    if (row == nullptr || row->name == "config") {
      *error = place + ": \"" + key + "\" is not an option; --help lists what there is";
      return false;
    }
    if (const auto [first, fresh] = seen.try_emplace(row, number); !fresh) {
      *error = place + ": " + key + " is already set in line " + std::to_string(first->second);
      return false;
    }
    if (!Set(*row, Trim(text.substr(equals + 1)), place, loaded, error)) {
      *error = place + ": " + *error;
      return false;
    }
  }
  return true;
}

bool ReadEnvironment(std::span<const char* const> environment, const Row* only,
                     LoadedOptions* loaded, std::string* error) {
  for (const std::string_view variable : environment) {
    if (!variable.starts_with(kEnvironmentPrefix)) continue;
    const size_t equals = variable.find('=');
    const std::string name(variable.substr(0, equals));
    const Row* row = FindRow(RowName(std::string_view(name).substr(kEnvironmentPrefix.size())));
    if (row == nullptr && only == nullptr)
      loaded->warnings.push_back("environment variable " + name +
                                 " is no option of the server and is ignored");
    if (row == nullptr || (only != nullptr && row != only)) continue;
    if (!Set(*row, variable.substr(equals + 1), "environment " + name, loaded, error)) {
      *error = "environment " + name + ": " + *error;
      return false;
    }
  }
  return true;
}

std::string ValueText(const Row& row, const Options& options) {
  if (const auto* word = std::get_if<std::string Options::*>(&row.member)) return options.**word;
  if (const auto* number = std::get_if<int64_t Options::*>(&row.member))
    return std::to_string(options.**number);
  if (const auto* list = std::get_if<std::vector<DeviceBytes> Options::*>(&row.member)) {
    std::string text;
    for (const DeviceBytes& limit : options.**list)
      text += (text.empty() ? "" : ",") + limit.device + "=" + std::to_string(limit.bytes);
    return text;
  }
  return options.*std::get<bool Options::*>(row.member) ? "on" : "off";
}

}  // namespace

bool LoadOptions(std::span<const char* const> arguments, std::span<const char* const> environment,
                 LoadedOptions* loaded, std::string* error) {
  for (const Row& row : kTable)
    if (!Set(row, row.fallback, "default", loaded, error)) return false;
  Flags flags;
  if (!ReadFlags(arguments, loaded, &flags, error)) return false;
  // Which file to read is decided by flag and environment alone; then everything is laid over it in
  // order.
  const Row* config = FindRow("config");
  if (!ReadEnvironment(environment, config, loaded, error)) return false;
  if (const auto flag = flags.values.find(config); flag != flags.values.end())
    loaded->options.config = flag->second;
  if (!loaded->options.config.empty() && !ReadFile(loaded->options.config, loaded, error))
    return false;
  if (!ReadEnvironment(environment, nullptr, loaded, error)) return false;
  for (const auto& [row, value] : flags.values) {
    if (Set(*row, value, "flag", loaded, error)) continue;
    *error = FlagName(row->name) + ": " + *error;
    return false;
  }
  return true;
}

std::string HelpText() {
  std::string text =
      "qmatmul-server: serves quantized matrix multiplication over gRPC.\n\n"
      "Each option is a flag, an environment variable or a line of the config file; flag > "
      "environment > file > "
      "default.\n\n";
  for (const Row& row : kTable) {
    text += "  " + FlagName(row.name) + " VALUE   (" + EnvironmentName(row.name) + ")\n      " +
            std::string(row.help);
    if (!row.words.empty()) text += " [" + std::string(row.words) + "]";
    if (!row.fallback.empty()) text += " (default " + std::string(row.fallback) + ")";
    text += '\n';
  }
  text +=
      "  --print-config   print each value and where it came from, then exit\n"
      "  --version        print the version, then exit\n"
      "  --help           print this, then exit\n";
  return text;
}

std::string ConfigText(const LoadedOptions& loaded) {
  std::string text;
  for (const Row& row : kTable) {
    if (row.name == "config" && loaded.options.config.empty()) continue;
    // A file cannot name another file, so the line that shows it is a comment.
    text += (row.name == "config" ? "# " : "") + std::string(row.name) + " = " +
            ValueText(row, loaded.options);
    text += "  # " + loaded.origin.at(row.name) + '\n';
  }
  return text;
}

}  // namespace qmatmul
