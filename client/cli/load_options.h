// The options that `bench` and `gen-load` share: which weights, which row counts in which shares,
// what output. Free functions; Failure (kExitUsage) names what was typed wrong.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "client/cli/arguments.h"
#include "client/cli/load_cases.h"

namespace qmatmul::cli {

// Row counts with their shares, and how that was written.
struct LoadMix {
  std::string name = {};
  std::vector<std::pair<int64_t, double>> rows = {};
};

// --mix 1:0.9,64:0.1 is one mix; --rows 1,64 (or `rows`) one for each.
std::vector<LoadMix> MixesOf(const Arguments& arguments, const std::vector<int64_t>& rows);
// --weight ID, any number: asked of the server, numbers unknown.
std::vector<LoadWeight> NamedWeights(const Arguments& arguments, client::Client* client);
// --shape KxN, any number: random int8.
std::vector<LoadWeight> ShapedWeights(const Arguments& arguments);
// --out, --kernel and --seed, for every weight alike.
LoadCases CasesOf(const Arguments& arguments, std::vector<LoadWeight> weights, const LoadMix& mix);

}  // namespace qmatmul::cli
