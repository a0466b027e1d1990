// qmatmul matmul, explain.
#include <cstdio>
#include <cstring>
#include <limits>

#include "client/cli/commands.h"
#include "client/cli/console.h"
#include "client/cli/json.h"
#include "client/cli/npy.h"

namespace qmatmul::cli {
namespace {

using client::Arithmetic;
using client::DataType;

constexpr DataType kOutputTypes[] = {DataType::kInt32, DataType::kInt16, DataType::kInt8,
                                     DataType::kF32,   DataType::kF16,   DataType::kBF16};
constexpr Arithmetic kArithmetics[] = {Arithmetic::kW8A8, Arithmetic::kW8A32};
constexpr double kFloatMax = 3.4028234663852886e38;
// Elements of a result that are shown when it is not written to a file.
constexpr int64_t kPreviewElements = 8;

bool IsFloat(DataType dtype) {
  return dtype == DataType::kF32 || dtype == DataType::kF16 || dtype == DataType::kBF16;
}

// What the activations borrow from.
struct ActivationFiles {
  NpyArray data, scales;
  std::vector<float> scale_value;
  std::vector<int32_t> zero_points;
};

DataType ActivationType(const NpyArray& array, const std::string& path, bool bf16) {
  switch (array.type) {
    case NpyType::kInt8: return DataType::kInt8;
    case NpyType::kUint8: return DataType::kUint8;
    case NpyType::kFloat32: return DataType::kF32;
    case NpyType::kFloat16: return DataType::kF16;
    case NpyType::kUint16:
      if (bf16) return DataType::kBF16;
      break;
    default: break;
  }
  throw Failure(kExitFile,
                path + ": activations are " + std::string(NameOf(array.type)) +
                    ", not int8, uint8, float16 or float32",
                "for bfloat16 stored as uint16 add --bf16");
}

bool IsFileName(const std::string& text) { return text.ends_with(".npy"); }

void ReadScales(const Arguments& arguments, ActivationFiles* files,
                client::Activations* activations) {
  const auto text = arguments.Text("--scales");
  if (!text) return;
  if (!IsFileName(*text)) {
    files->scale_value = {
        static_cast<float>(arguments.Number("--scales", 0, -kFloatMax, kFloatMax))};
    activations->scales = client::Scales(files->scale_value);
    return;
  }
  files->scales = ReadNpy(*text);
  if (files->scales.type == NpyType::kFloat32)
    activations->scales = {DataType::kF32, files->scales.data};
  else if (files->scales.type == NpyType::kFloat16)
    activations->scales = {DataType::kF16, files->scales.data};
  else
    throw Failure(kExitFile, *text + ": scales are " + std::string(NameOf(files->scales.type)) +
                                 ", not float32 or float16");
}

void ReadZeroPoints(const Arguments& arguments, ActivationFiles* files,
                    client::Activations* activations) {
  const auto text = arguments.Text("--zero-points");
  if (!text) return;
  if (IsFileName(*text)) {
    const NpyArray array = ReadNpy(*text);
    if (array.type != NpyType::kInt32)
      throw Failure(kExitFile,
                    *text + ": zero points are " + std::string(NameOf(array.type)) + ", not int32",
                    "save z.astype('int32')");
    files->zero_points.resize(static_cast<size_t>(array.count()));
    std::memcpy(files->zero_points.data(), array.data.data(), array.data.size());
  } else {
    files->zero_points = {
        static_cast<int32_t>(arguments.Integer("--zero-points", 0, INT32_MIN, INT32_MAX))};
  }
  activations->zero_points = files->zero_points;
}

client::Activations ReadActivations(const Arguments& arguments, ActivationFiles* files) {
  const std::string& path = arguments.positionals().back();
  files->data = ReadNpy(path);
  const auto& shape = files->data.shape;
  if (shape.empty() || shape.size() > 2)
    throw Failure(kExitFile, path + ": activations are [M, K] or [K], not " + ShapeText(shape));
  client::Activations activations;
  activations.dtype = ActivationType(files->data, path, arguments.Has("--bf16"));
  activations.rows = shape.size() == 2 ? shape[0] : 1;
  activations.k = shape.back();
  activations.data = files->data.data;
  activations.dynamic = arguments.Has("--dynamic");
  ReadScales(arguments, files, &activations);
  ReadZeroPoints(arguments, files, &activations);
  return activations;
}

client::OutputSpec ReadOutputSpec(const Arguments& arguments) {
  client::OutputSpec spec;
  spec.dtype = arguments.Choice("--out", kOutputTypes, DataType::kUnspecified);
  if (spec.dtype == DataType::kUnspecified)
    throw Failure(kExitUsage, "--out is required: INT32, INT16, INT8, F32, F16 or BF16",
                  "INT32 gives the raw sums, F32 the scaled result");
  const client::Overflow rules[] = {client::Overflow::kSaturate, client::Overflow::kWrap,
                                    client::Overflow::kError};
  spec.overflow = arguments.Choice("--overflow", rules, client::Overflow::kUnspecified);
  if (arguments.Has("--out-scale"))
    spec.scale = static_cast<float>(arguments.Number("--out-scale", 0, -kFloatMax, kFloatMax));
  if (arguments.Has("--out-zero-point"))
    spec.zero_point =
        static_cast<int32_t>(arguments.Integer("--out-zero-point", 0, INT32_MIN, INT32_MAX));
  if (arguments.Has("--relu")) spec.activation = client::Activation::kRelu;
  spec.skip_bias = arguments.Has("--skip-bias");
  spec.top_k = arguments.Integer("--top-k", 0, 1, INT32_MAX);
  return spec;
}

client::MatMulOptions ReadMatMulOptions(const Arguments& arguments) {
  client::MatMulOptions options;
  options.arithmetic = arguments.Choice("--arithmetic", kArithmetics, Arithmetic::kUnspecified);
  options.device = arguments.Text("--device").value_or("");
  options.kernel = arguments.Text("--kernel").value_or("");
  options.verify = arguments.Has("--verify");
  return options;
}

// "down:relu" → "down" and ReLU. An id has no colon.
std::string WeightOf(const std::string& word, client::Activation* activation) {
  const size_t colon = word.find(':');
  if (colon == std::string::npos) return word;
  if (word.substr(colon) != ":relu")
    throw Failure(kExitUsage, "'" + word + "' is neither an ID nor ID:relu");
  *activation = client::Activation::kRelu;
  return word.substr(0, colon);
}

// What is multiplied by, in the order of the command line: products that share the activations, or
// with --then one product and the steps after it.
struct WeightPlan {
  std::vector<client::Product> products;
  std::vector<client::ChainStep> then;
};

WeightPlan ReadWeights(const Arguments& arguments, Arithmetic arithmetic,
                       const client::OutputSpec& last) {
  const auto& words = arguments.positionals();
  const auto steps = arguments.All("--then");
  WeightPlan plan;
  if (steps.empty()) {
    for (size_t i = 0; i + 1 < words.size(); ++i) {
      plan.products.push_back({.weight = {}, .output = last, .into = {}});
      plan.products.back().weight = WeightOf(words[i], &plan.products.back().output.activation);
    }
    return plan;
  }
  if (words.size() != 2)
    throw Failure(kExitUsage, "--then continues on the result of one weight, not of " +
                                  std::to_string(words.size() - 1));
  client::OutputSpec between{.dtype = DataType::kF32};
  const std::string first = WeightOf(words[0], &between.activation);
  plan.products.push_back({.weight = first, .output = between, .into = {}});
  for (size_t i = 0; i < steps.size(); ++i) {
    client::ChainStep step{
        .output = i + 1 < steps.size() ? client::OutputSpec{.dtype = DataType::kF32} : last};
    step.weight = WeightOf(steps[i], &step.output.activation);
    step.arithmetic = arithmetic == Arithmetic::kUnspecified ? Arithmetic::kW8A8 : arithmetic;
    plan.then.push_back(std::move(step));
  }
  return plan;
}

NpyType FileTypeOf(DataType dtype) {
  switch (dtype) {
    case DataType::kInt8: return NpyType::kInt8;
    case DataType::kInt16: return NpyType::kInt16;
    case DataType::kInt32: return NpyType::kInt32;
    case DataType::kF16: return NpyType::kFloat16;
    case DataType::kBF16: return NpyType::kUint16;
    case DataType::kF32: return NpyType::kFloat32;
    default: break;
  }
  throw Failure(kExitServer, "the server sent a result of type " + std::string(NameOf(dtype)));
}

// An option that is given once per weight, or not at all.
std::vector<std::string> FilesPerWeight(const Arguments& arguments, std::string_view name,
                                        size_t weights) {
  auto files = arguments.All(name);
  if (!files.empty() && files.size() != weights)
    throw Failure(kExitUsage, std::string(name) + " is given " + std::to_string(files.size()) +
                                  " times for " + std::to_string(weights) +
                                  " weights; give it once per weight");
  return files;
}

std::string ElementText(const client::Output& output, size_t i) {
  switch (output.dtype) {
    case DataType::kInt8: return std::to_string(output.As<int8_t>()[i]);
    case DataType::kInt16: return std::to_string(output.As<int16_t>()[i]);
    case DataType::kInt32: return std::to_string(output.As<int32_t>()[i]);
    case DataType::kF32: {
      char text[32];
      std::snprintf(text, sizeof(text), "%.6g", static_cast<double>(output.As<float>()[i]));
      return text;
    }
    default: {
      char text[16];
      std::snprintf(text, sizeof(text), "0x%04x", output.As<uint16_t>()[i]);
      return text;
    }
  }
}

std::string PreviewText(const client::Output& output) {
  const int64_t count = static_cast<int64_t>(output.bytes.size()) * 8 / BitsOf(output.dtype);
  std::string text;
  for (int64_t i = 0; i < std::min(count, kPreviewElements); ++i) {
    const size_t at = static_cast<size_t>(i);
    text += (i > 0 ? " " : "") + ElementText(output, at);
    if (at < output.indices.size()) text += "@" + std::to_string(output.indices[at]);
  }
  return text + (count > kPreviewElements ? " ..." : "");
}

void PrintOutput(const client::Output& output, const std::string& file) {
  const client::Execution& e = output.execution;
  std::printf("%s: %s %s by %s, %s compute, %s queued", e.weight.c_str(),
              std::string(NameOf(output.dtype)).c_str(), ShapeText(output.shape).c_str(),
              e.kernel.c_str(), DurationText(e.compute_ns).c_str(),
              DurationText(e.queue_ns).c_str());
  if (e.overflow != client::Overflow::kUnspecified)
    std::printf(", overflow %s %lld", std::string(NameOf(e.overflow)).c_str(),
                static_cast<long long>(e.overflow_count));
  if (e.verified) std::printf(", verified");
  if (file.empty())
    std::printf("\n  %s\n  (-o FILE.npy writes it all)\n", PreviewText(output).c_str());
  else std::printf(" -> %s\n", file.c_str());
}

template <class T>
void WriteValues(const std::string& path, NpyType type, std::span<const int64_t> shape,
                 const std::vector<T>& values) {
  WriteNpy(path, type, shape, std::as_bytes(std::span(values)));
}

}  // namespace

int RunMatMul(const Arguments& arguments) {
  const auto& words = arguments.positionals();
  const size_t weights = words.size() - 1;
  const auto files = FilesPerWeight(arguments, "--output", weights);
  const auto index_files = FilesPerWeight(arguments, "--indices", weights);
  if (!index_files.empty() && !arguments.Has("--top-k"))
    throw Failure(kExitUsage, "--indices is for --top-k only");
  const client::OutputSpec spec = ReadOutputSpec(arguments);
  client::MatMulOptions options = ReadMatMulOptions(arguments);
  ActivationFiles buffers;
  const client::Activations activations = ReadActivations(arguments, &buffers);
  const bool quantized = activations.dynamic || !activations.scales.bytes.empty();
  if (options.arithmetic == Arithmetic::kUnspecified && IsFloat(activations.dtype) && quantized)
    options.arithmetic = Arithmetic::kW8A8;  // the only one that takes a quantization
  const WeightPlan plan = ReadWeights(arguments, options.arithmetic, spec);
  options.then = plan.then;

  client::Client client(OptionsOf(arguments));
  const auto outputs = ValueOf(client.MatMul(plan.products, activations, options), client);
  Json list = Json::array();
  for (size_t i = 0; i < outputs.size(); ++i) {
    const client::Output& output = outputs[i];
    const std::string file = files.empty() ? std::string() : files[i];
    if (!file.empty())
      WriteNpy(file, FileTypeOf(output.dtype), output.shape,
               std::as_bytes(std::span(output.bytes)));
    if (!index_files.empty())
      WriteValues(index_files[i], NpyType::kInt32, output.shape, output.indices);
    const auto scales_file = arguments.Text("--activation-scales");
    if (scales_file && i == 0) {
      if (output.activation_scales.empty())
        throw Failure(kExitUsage, "the reply has no activation scales to write to " + *scales_file,
                      "only raw sums of float activations carry them");
      WriteValues(*scales_file, NpyType::kFloat32,
                  std::vector<int64_t>{static_cast<int64_t>(output.activation_scales.size())},
                  output.activation_scales);
    }
    list.push_back(ToJson(output));
    if (!file.empty()) list.back()["file"] = file;
    if (!arguments.Has("--json")) PrintOutput(output, file);
  }
  if (arguments.Has("--json")) PrintJson({{"outputs", list}});
  return kExitOk;
}

int RunExplain(const Arguments& arguments) {
  constexpr DataType kActivationTypes[] = {DataType::kInt8, DataType::kUint8, DataType::kF32,
                                           DataType::kF16, DataType::kBF16};
  std::vector<client::Product> products;
  client::OutputSpec spec;
  spec.dtype = arguments.Choice("--out", kOutputTypes, DataType::kInt32);
  for (const std::string& id : arguments.positionals())
    products.push_back({.weight = id, .output = spec, .into = {}});
  client::Client client(OptionsOf(arguments));
  const auto explanation =
      ValueOf(client.Explain(products, arguments.Integer("--rows", 1, 0, INT32_MAX),
                             arguments.Choice("--activations", kActivationTypes, DataType::kInt8),
                             ReadMatMulOptions(arguments)),
              client);
  if (arguments.Has("--json")) {
    PrintJson(ToJson(explanation));
    return kExitOk;
  }
  std::printf("%s on %s%s\n  %s\n\n", explanation.kernel.c_str(), explanation.device.c_str(),
              explanation.runs_inline ? ", inline" : "", explanation.rule.c_str());
  TextTable table({"", "KERNEL", "PREDICTED", "WHY"});
  for (const auto& c : explanation.candidates)
    table.Add({c.chosen ? "*" : (c.eligible ? "" : "-"), c.kernel,
               c.predicted_ns ? DurationText(*c.predicted_ns) : "not measured", c.reason});
  std::fputs(table.ToString().c_str(), stdout);
  return kExitOk;
}

}  // namespace qmatmul::cli
