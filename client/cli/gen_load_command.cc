// qmatmul gen-load.
#include <algorithm>
#include <cstdio>
#include <fstream>

#include "client/cli/commands.h"
#include "client/cli/console.h"
#include "client/cli/json.h"
#include "client/cli/load_options.h"
#include "client/cli/npy.h"

namespace qmatmul::cli {
namespace {

constexpr int64_t kCountMax = 1'000'000;
constexpr int64_t kCountDefault = 1000;
// A file is written and read whole by ghz.
constexpr int64_t kFileBytesMax = int64_t{4} << 30;

void PutVarint(uint64_t value, std::string* out) {
  for (; value > 127; value >>= 7) *out += static_cast<char>(value | 128);
  *out += static_cast<char>(value);
}

// One case with the activations of a file.
LoadCases CaseOfFile(const Arguments& arguments, std::vector<LoadWeight> weights,
                     const std::string& path) {
  const NpyArray array = ReadNpy(path);
  if (array.type != NpyType::kInt8 || array.shape.size() != 2)
    throw Failure(kExitFile, path + ": activations are " + std::string(NameOf(array.type)) + " " +
                                 ShapeText(array.shape) + ", not int8 [M, K]");
  LoadCases cases =
      CasesOf(arguments, std::move(weights), {.name = path, .rows = {{array.shape[0], 1.0}}});
  // The weights share the activations, one request each.
  std::vector<LoadCase> kept;
  for (LoadCase& one : cases.cases) {
    if (!kept.empty() && kept.back().weight == one.weight) continue;
    if (array.shape[1] != cases.weights[one.weight].k)
      throw Failure(kExitFile, path + " has rows of " + std::to_string(array.shape[1]) +
                                   " but weight '" + cases.weights[one.weight].id +
                                   "' has K=" + std::to_string(cases.weights[one.weight].k));
    one.data = array.data;
    kept.push_back(std::move(one));
  }
  cases.cases = std::move(kept);
  return cases;
}

LoadCases ReadRequests(const Arguments& arguments, client::Client* client) {
  if (const auto path = arguments.Text("--cases")) {
    LoadCases cases = ReadCases(*path);
    if (!arguments.Has("--register")) return cases;
    for (const LoadWeight& weight : cases.weights) {
      client::WeightUpload upload = weight.Upload();
      upload.replace = true;
      ValueOf(client->RegisterWeight(upload), *client);
    }
    return cases;
  }
  std::vector<LoadWeight> weights = NamedWeights(arguments, client);
  if (weights.empty())
    throw Failure(kExitUsage, "gen-load needs --weight ID or --cases FILE.json",
                  "`qmatmul list` shows the weights there are");
  if (const auto path = arguments.Text("--activations"))
    return CaseOfFile(arguments, std::move(weights), *path);
  LoadMix mix = {.name = "rows", .rows = {}};
  for (const LoadMix& one : MixesOf(arguments, {1}))
    mix.rows.insert(mix.rows.end(), one.rows.begin(), one.rows.end());
  return CasesOf(arguments, std::move(weights), mix);
}

}  // namespace

int RunGenLoad(const Arguments& arguments) {
  client::Client client(OptionsOf(arguments));
  const LoadCases cases = ReadRequests(arguments, &client);
  const std::vector<client::LoadItem> items = cases.Items();
  const auto seed = static_cast<uint64_t>(arguments.Integer("--seed", 1, 0, int64_t{1} << 62));
  // Equal shares need each request once.
  const bool equal = std::all_of(items.begin(), items.end(), [&items](const auto& item) {
    return item.share == items[0].share;
  });
  const int64_t fewest = equal ? static_cast<int64_t>(items.size()) : kCountDefault;
  const int64_t count = arguments.Integer("--count", fewest, 1, kCountMax);
  const auto order = client::DrawOrder(items, static_cast<size_t>(count), seed);

  std::vector<std::string> messages;
  for (const client::LoadItem& item : items) {
    std::string framed;
    PutVarint(item.call.message_bytes(), &framed);
    messages.push_back(framed + item.call.message());
  }
  int64_t bytes = 0;
  for (uint32_t i : order) bytes += static_cast<int64_t>(messages[i].size());
  if (bytes > kFileBytesMax)
    throw Failure(kExitUsage,
                  std::to_string(count) + " requests are " + BytesText(bytes) + ", more than " +
                      BytesText(kFileBytesMax),
                  "give a smaller --count: ghz reads the file over and over");
  const std::string& path = arguments.positionals()[0];
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  for (uint32_t i : order)
    file.write(messages[i].data(), static_cast<std::streamsize>(messages[i].size()));
  if (!file.flush()) throw Failure(kExitFile, path + ": cannot be written");
  if (arguments.Has("--json")) PrintJson({{"file", path}, {"requests", count}, {"bytes", bytes}});
  else
    std::printf("%s: %lld requests, %s\n", path.c_str(), static_cast<long long>(count),
                BytesText(bytes).c_str());
  return kExitOk;
}

}  // namespace qmatmul::cli
