// qmatmul health.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>

#include "client/cli/commands.h"
#include "client/cli/console.h"
#include "client/cli/json.h"

namespace qmatmul::cli {
namespace {

using client::Code;
using client::Health;
using std::chrono::steady_clock;

// Between two questions of --wait: short against a server's start, long against its cost.
constexpr std::chrono::milliseconds kWaitStep{100};

bool IsWorthWaiting(const client::Result<Health>& health) {
  if (health.ok()) return *health != Health::kServing;
  return health.status().code == Code::kUnavailable ||
         health.status().code == Code::kDeadlineExceeded;
}

}  // namespace

int RunHealth(const Arguments& arguments) {
  constexpr double kWaitSecondsMax = 3600;
  const auto& words = arguments.positionals();
  const std::string service = words.empty() ? "" : words[0];
  const auto wait =
      std::chrono::duration<double>(arguments.Number("--wait", 0, 0, kWaitSecondsMax));
  const auto until = steady_clock::now() + std::chrono::duration_cast<steady_clock::duration>(wait);

  // A fresh client each time: a channel that has failed waits longer and longer before it tries
  // again.
  auto options = OptionsOf(arguments);
  options.connections = 1;
  auto health = client::Client(options).CheckHealth(service);
  while (IsWorthWaiting(health) && steady_clock::now() < until) {
    std::this_thread::sleep_for(kWaitStep);
    health = client::Client(options).CheckHealth(service);
  }
  if (!health.ok()) throw Failure(health.status(), options.server);
  const std::string name(NameOf(*health));
  if (arguments.Has("--json"))
    PrintJson({{"server", options.server}, {"service", service}, {"status", name}});
  else std::printf("%s\n", name.c_str());
  return *health == Health::kServing ? kExitOk : kExitNo;
}

}  // namespace qmatmul::cli
