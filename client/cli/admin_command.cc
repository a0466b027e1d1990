// qmatmul admin.
#include <cstdio>

#include "client/cli/commands.h"
#include "client/cli/console.h"
#include "client/cli/json.h"

namespace qmatmul::cli {

int RunAdmin(const Arguments& arguments) {
  const auto& words = arguments.positionals();
  if (words[0] != "rearm")
    throw Failure(kExitUsage, "qmatmul admin has no action '" + words[0] + "'",
                  "the action is rearm: qmatmul admin rearm KEY");
  const client::ClientOptions options = OptionsOf(arguments);
  const client::Status status = client::Client(options).RearmKernel(words[1]);
  if (!status.ok()) throw Failure(status, options.server);
  if (arguments.Has("--json")) PrintJson({{"key", words[1]}, {"rearmed", true}});
  else std::printf("re-armed %s\n", words[1].c_str());
  return kExitOk;
}

}  // namespace qmatmul::cli
