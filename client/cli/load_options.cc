#include "client/cli/load_options.h"

#include <algorithm>
#include <charconv>

#include "client/cli/console.h"

namespace qmatmul::cli {
namespace {

using client::DataType;

constexpr int64_t kRowsMax = 65'536;
constexpr int64_t kInnerMax = 131'071;  // the contract's
constexpr int64_t kColumnsMax = int64_t{1} << 24;
constexpr int64_t kSeedMax = int64_t{1} << 62;
// Different requests for one weight and row count, so that no cache sees one over and over; as many
// as fit into this.
constexpr int64_t kVariantBytesMax = int64_t{4} << 20;
constexpr int kVariantsMax = 4;

template <class T>
bool ParseWhole(std::string_view text, T* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size();
}

LoadMix ParseMix(const std::string& text) {
  LoadMix mix{.name = text, .rows = {}};
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    const size_t colon = std::min(part.find(':'), part.size());
    int64_t rows = 0;
    double share = 0;
    const bool good = colon < part.size() && ParseWhole(part.substr(0, colon), &rows) &&
                      ParseWhole(part.substr(colon + 1), &share);
    if (!good || rows < 1 || rows > kRowsMax || !(share > 0 && share < 1e9))
      throw Failure(kExitUsage, "--mix " + text + ": '" + part + "' is not ROWS:SHARE",
                    "write --mix 1:0.9,64:0.1 with 1 to 65536 rows and shares above 0");
    mix.rows.emplace_back(rows, share);
    begin = end + 1;
  }
  return mix;
}

}  // namespace

std::vector<LoadMix> MixesOf(const Arguments& arguments, const std::vector<int64_t>& rows) {
  if (const auto mix = arguments.Text("--mix")) {
    if (arguments.Has("--rows"))
      throw Failure(kExitUsage, "--mix and --rows exclude each other",
                    "--rows 1,64 is two runs, --mix 1:0.5,64:0.5 one with both");
    return {ParseMix(*mix)};
  }
  std::vector<LoadMix> mixes;
  for (int64_t m : arguments.Integers("--rows", rows, 1, kRowsMax))
    mixes.push_back({std::to_string(m), {{m, 1.0}}});
  return mixes;
}

std::vector<LoadWeight> NamedWeights(const Arguments& arguments, client::Client* client) {
  std::vector<LoadWeight> weights;
  for (const std::string& id : arguments.All("--weight")) {
    const client::WeightInfo info = ValueOf(client->GetWeight(id), *client);
    LoadWeight weight;
    weight.id = id;
    weight.dtype = info.dtype;
    weight.layout = info.layout;
    weight.k = info.k;
    weight.n = info.n;
    weights.push_back(std::move(weight));
  }
  return weights;
}

std::vector<LoadWeight> ShapedWeights(const Arguments& arguments) {
  std::vector<LoadWeight> weights;
  for (const std::string& text : arguments.All("--shape")) {
    const size_t cross = std::min(text.find('x'), text.size());
    int64_t k = 0, n = 0;
    const bool good = cross < text.size() &&
                      ParseWhole(std::string_view(text).substr(0, cross), &k) &&
                      ParseWhole(std::string_view(text).substr(cross + 1), &n);
    if (!good || k < 1 || k > kInnerMax || n < 1 || n > kColumnsMax)
      throw Failure(kExitUsage, "--shape " + text + " is not KxN",
                    "write --shape 4096x11008; K is at most 131071, N at most 16777216");
    weights.push_back(RandomWeight("qmatmul-bench-" + text, k, n, weights.size() + 2));
  }
  return weights;
}

LoadCases CasesOf(const Arguments& arguments, std::vector<LoadWeight> weights, const LoadMix& mix) {
  constexpr DataType kOutputs[] = {DataType::kInt32, DataType::kInt16, DataType::kInt8,
                                   DataType::kF32,   DataType::kF16,   DataType::kBF16};
  client::OutputSpec output;
  output.dtype = arguments.Choice("--out", kOutputs, DataType::kInt32);
  output.skip_bias = output.dtype == DataType::kInt32;
  const auto seed = static_cast<uint64_t>(arguments.Integer("--seed", 1, 0, kSeedMax));
  LoadCases cases;
  cases.weights = std::move(weights);
  const bool together = arguments.Has("--together");
  for (size_t w = 0; w < (together ? 1 : cases.weights.size()); ++w) {
    for (const auto& [rows, share] : mix.rows) {
      const int64_t fit = kVariantBytesMax / std::max<int64_t>(rows * cases.weights[w].k, 1);
      const int variants = static_cast<int>(std::clamp<int64_t>(fit, 1, kVariantsMax));
      AddRows(&cases, w, rows, share, variants, output, seed + 1000 * cases.cases.size());
    }
  }
  for (LoadCase& one : cases.cases) {
    one.options.kernel = arguments.Text("--kernel").value_or("");
    for (size_t w = 1; together && w < cases.weights.size(); ++w) {
      if (cases.weights[w].k != cases.weights[0].k)
        throw Failure(kExitUsage,
                      "--together: K is " + std::to_string(cases.weights[0].k) + " and " +
                          std::to_string(cases.weights[w].k),
                      "weights of one call share their activations, and so K");
      one.more_weights.push_back(w);
    }
  }
  return cases;
}

}  // namespace qmatmul::cli
