// The case file of LoadCases, as JSON:
//   {"weights": [{"id": "w", "dtype": "INT8", "layout": "KN", "k": 64, "n": 32, "seed": 1,
//                 "group_size": 0, "scales": 32, "bias": true}, …],
//    "cases": [{"name": "…", "weight": "w", "rows": 3, "activations": "INT8", "seed": 2,
//               "dynamic": false, "scale": 0.5, "zero_point": -4, "arithmetic": "W8A8", "share": 1,
//               "output": {"dtype": "INT8", "overflow": "WRAP", "scale": 0.1, "zero_point": 3,
//                          "activation": "RELU", "skip_bias": true}}, …]}
// Numbers come from the seeds, so that a file of a page stands for megabytes. What is left out has
// the contract's default; a key that is not known is refused.
#include <fstream>
#include <initializer_list>
#include <random>

#include "client/cli/failure.h"
#include "client/cli/json.h"
#include "client/cli/load_cases.h"

namespace qmatmul::cli {
namespace {

using client::DataType;

constexpr int64_t kRowsMax = 65'536;
constexpr int64_t kSideMax = 65'536;

// One object of the file, with where it stands for messages.
class CaseReader {
 public:
  CaseReader(const Json& json, std::string where, std::initializer_list<std::string_view> keys)
      : json_(json), where_(std::move(where)) {
    if (!json.is_object()) Refuse("is not an object");
    for (const auto& [key, value] : json.items())
      if (std::find(keys.begin(), keys.end(), key) == keys.end())
        Refuse("has the unknown key '" + key + "'");
  }

  bool Has(const char* key) const { return json_.contains(key); }
  template <class T>
  T Get(const char* key, T fallback) const {
    if (!Has(key)) return fallback;
    try {
      return json_.at(key).get<T>();
    } catch (const Json::exception&) { Refuse("has " + json_.at(key).dump() + " as " + key); }
  }
  std::string Text(const char* key) const {
    auto text = Get<std::string>(key, "");
    if (text.empty()) Refuse(std::string("has no ") + key);
    return text;
  }
  int64_t Size(const char* key, int64_t min, int64_t max) const {
    const auto size = Get<int64_t>(key, -1);
    if (size < min || size > max)
      Refuse("has " + std::to_string(size) + " as " + key + ", not " + std::to_string(min) +
             " to " + std::to_string(max));
    return size;
  }
  // The enumerator whose name stands there; `fallback` when nothing does.
  template <class Enum>
  Enum Named(const char* key, std::initializer_list<Enum> choices, Enum fallback) const {
    const auto text = Get<std::string>(key, "");
    if (text.empty()) return fallback;
    for (Enum choice : choices)
      if (NameOf(choice) == text) return choice;
    Refuse("has '" + text + "' as " + key);
  }
  [[noreturn]] void Refuse(const std::string& what) const {
    throw Failure(kExitFile, where_ + " " + what,
                  "the form is described at the top of client/cli/case_file.cc");
  }
  const Json& json() const { return json_; }
  const std::string& where() const { return where_; }

 private:
  const Json& json_;
  std::string where_;
};

std::vector<float> RandomFloats(int64_t count, float low, float high, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> real(low, high);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = real(random);
  return values;
}

LoadWeight ReadWeight(const CaseReader& in) {
  LoadWeight weight;
  weight.id = in.Text("id");
  weight.dtype = in.Named("dtype", {DataType::kInt8, DataType::kInt4, DataType::kInt2},
                          DataType::kUnspecified);
  weight.layout =
      in.Named("layout", {client::Layout::kKN, client::Layout::kNK}, client::Layout::kUnspecified);
  weight.k = in.Size("k", 1, kSideMax);
  weight.n = in.Size("n", 1, kSideMax);
  if (weight.k * weight.n % 4 != 0 || weight.k % 4 != 0 || weight.n % 4 != 0)
    if (weight.dtype != DataType::kInt8) in.Refuse("has k or n that is not a multiple of 4");
  weight.group_size = in.Get<int64_t>("group_size", 0);
  const auto seed = in.Get<uint64_t>("seed", 1);
  weight.data = RandomElements(weight.dtype, weight.k * weight.n, seed);
  weight.scales = RandomFloats(in.Get<int64_t>("scales", 0), 0x1p-9f, 0x1p-5f, seed + 1);
  if (in.Get("bias", false)) weight.bias = RandomFloats(weight.n, -1, 1, seed + 2);
  return weight;
}

client::OutputSpec ReadOutput(const CaseReader& in) {
  client::OutputSpec output;
  output.dtype = in.Named("dtype",
                          {DataType::kInt32, DataType::kInt16, DataType::kInt8, DataType::kF32,
                           DataType::kF16, DataType::kBF16},
                          DataType::kUnspecified);
  output.overflow = in.Named("overflow", {client::Overflow::kSaturate, client::Overflow::kWrap},
                             client::Overflow::kUnspecified);
  if (in.Has("scale")) output.scale = in.Get("scale", 0.0f);
  if (in.Has("zero_point")) output.zero_point = in.Get("zero_point", 0);
  output.activation = in.Named("activation", {client::Activation::kNone, client::Activation::kRelu},
                               client::Activation::kUnspecified);
  output.skip_bias = in.Get("skip_bias", false);
  return output;
}

LoadCase ReadCase(const CaseReader& in, const std::vector<LoadWeight>& weights) {
  LoadCase one;
  one.name = in.Text("name");
  const std::string id = in.Text("weight");
  while (one.weight < weights.size() && weights[one.weight].id != id) ++one.weight;
  if (one.weight == weights.size()) in.Refuse("names the weight '" + id + "', which is not there");
  one.rows = in.Size("rows", 0, kRowsMax);
  one.share = in.Get("share", 1.0);
  one.activations =
      in.Named("activations",
               {DataType::kInt8, DataType::kUint8, DataType::kF32, DataType::kF16, DataType::kBF16},
               DataType::kUnspecified);
  one.data = RandomElements(one.activations, one.rows * weights[one.weight].k,
                            in.Get<uint64_t>("seed", 1));
  one.dynamic = in.Get("dynamic", false);
  if (in.Has("scale")) one.scales = {in.Get("scale", 0.0f)};
  if (in.Has("zero_point")) one.zero_points = {in.Get("zero_point", 0)};
  one.options.arithmetic =
      in.Named("arithmetic", {client::Arithmetic::kW8A8, client::Arithmetic::kW8A32},
               client::Arithmetic::kUnspecified);
  if (!in.Has("output")) in.Refuse("has no output");
  one.output =
      ReadOutput({in.json().at("output"),
                  in.where() + " output",
                  {"dtype", "overflow", "scale", "zero_point", "activation", "skip_bias"}});
  return one;
}

}  // namespace

LoadCases ReadCases(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw Failure(kExitFile, path + ": cannot be read");
  const Json json = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) throw Failure(kExitFile, path + ": is not JSON");
  const CaseReader whole(json, path, {"weights", "cases"});
  LoadCases cases;
  for (const char* list : {"weights", "cases"})
    if (!whole.Has(list) || !json.at(list).is_array() || json.at(list).empty())
      whole.Refuse(std::string("has no list of ") + list);
  for (const Json& one : json.at("weights"))
    cases.weights.push_back(
        ReadWeight({one,
                    path + " weights[" + std::to_string(cases.weights.size()) + "]",
                    {"id", "dtype", "layout", "k", "n", "group_size", "seed", "scales", "bias"}}));
  for (const Json& one : json.at("cases"))
    cases.cases.push_back(ReadCase({one,
                                    path + " cases[" + std::to_string(cases.cases.size()) + "]",
                                    {"name", "weight", "rows", "share", "activations", "seed",
                                     "dynamic", "scale", "zero_point", "arithmetic", "output"}},
                                   cases.weights));
  return cases;
}

}  // namespace qmatmul::cli
