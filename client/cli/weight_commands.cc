// qmatmul register, list, show, delete.
#include <cstdio>

#include "client/cli/commands.h"
#include "client/cli/console.h"
#include "client/cli/json.h"
#include "client/cli/npy.h"
#include "client/pack.h"

namespace qmatmul::cli {
namespace {

using client::DataType;
using client::Layout;

client::Scales ReadScales(const NpyArray& array, const std::string& path, bool bf16) {
  if (array.type == NpyType::kFloat32) return {DataType::kF32, array.data};
  if (array.type == NpyType::kFloat16) return {DataType::kF16, array.data};
  if (array.type == NpyType::kUint16 && bf16) return {DataType::kBF16, array.data};
  throw Failure(
      kExitFile,
      path + ": scales are " + std::string(NameOf(array.type)) + ", not float32 or float16",
      "for bfloat16 stored as uint16 add --bf16-scales");
}

std::span<const float> ReadBias(const NpyArray& array, const std::string& path) {
  if (array.type != NpyType::kFloat32)
    throw Failure(kExitFile,
                  path + ": the bias is " + std::string(NameOf(array.type)) + ", not float32",
                  "save b.astype('float32')");
  return {reinterpret_cast<const float*>(array.data.data()), static_cast<size_t>(array.count())};
}

Layout RequiredLayout(const Arguments& arguments) {
  const Layout choices[] = {Layout::kKN, Layout::kNK};
  const Layout layout = arguments.Choice("--layout", choices, Layout::kUnspecified);
  if (layout == Layout::kUnspecified)
    throw Failure(
        kExitUsage, "--layout is required: a square weight would not show a wrong guess",
        "KN when the file is [K, N] (x @ w), NK when it is [N, K] (torch.nn.Linear.weight)");
  return layout;
}

// INT4 and INT2 travel packed; `packed` keeps the bytes.
void PackValues(const Arguments& arguments, const NpyArray& data, const std::string& path,
                std::vector<std::byte>* packed, client::WeightUpload* upload) {
  const DataType choices[] = {DataType::kInt8, DataType::kInt4, DataType::kInt2};
  upload->dtype = arguments.Choice("--dtype", choices, DataType::kInt8);
  upload->group_size = arguments.Integer("--group-size", 0, 1, INT32_MAX);
  if (upload->dtype == DataType::kInt4 && upload->group_size == 0)
    throw Failure(kExitUsage,
                  "--group-size is required for INT4: how many values along K share a scale",
                  "one scale per column is --group-size " + std::to_string(upload->k));
  if (upload->dtype != DataType::kInt4 && upload->group_size != 0)
    throw Failure(kExitUsage, "--group-size is for --dtype INT4");
  upload->data = data.data;
  if (upload->dtype == DataType::kInt8) return;
  const std::span values(reinterpret_cast<const int8_t*>(data.data.data()), data.data.size());
  auto bytes = client::PackWeight(upload->dtype, values, data.shape[1]);
  if (!bytes.ok()) throw Failure(kExitFile, path + ": " + bytes.status().message);
  *packed = std::move(*bytes);
  upload->data = *packed;
}

std::string CopyBytesText(const client::WeightInfo& weight) {
  int64_t bytes = 0;
  for (const auto& copy : weight.copies) bytes += copy.bytes;
  return BytesText(bytes);
}

std::string ScalesText(const client::WeightInfo& w) {
  if (w.scale_count == 0) return "-";
  return std::to_string(w.scale_count) + " " + std::string(NameOf(w.scale_dtype));
}

void PrintWeight(const client::WeightInfo& w) {
  std::printf("id          %s\n", w.id.c_str());
  std::printf("type        %s %s, K %lld, N %lld\n", std::string(NameOf(w.dtype)).c_str(),
              std::string(NameOf(w.layout)).c_str(), static_cast<long long>(w.k),
              static_cast<long long>(w.n));
  if (w.group_size > 0)
    std::printf("groups      of %lld along K\n", static_cast<long long>(w.group_size));
  std::printf("scales      %s\n", ScalesText(w).c_str());
  std::printf("bias        %s\n", w.bias_count > 0 ? std::to_string(w.bias_count).c_str() : "-");
  std::printf("digest      %s\n", w.digest.c_str());
  std::printf("generation  %lld\n", static_cast<long long>(w.generation));
  for (const auto& copy : w.copies)
    std::printf("copy        %s, %s, %s\n", copy.device.c_str(), copy.layout.c_str(),
                BytesText(copy.bytes).c_str());
  for (const auto& absence : w.absences)
    std::printf("not on      %s: %s\n", absence.device.c_str(), absence.reason.c_str());
}

client::Registration Upload(client::Client& client, const client::WeightUpload& upload) {
  ProgressBar bar("uploading " + upload.id);
  return ValueOf(
      client.RegisterWeight(upload, [&bar](int64_t sent, int64_t total) { bar.Show(sent, total); }),
      client);
}

}  // namespace

int RunRegister(const Arguments& arguments) {
  const std::string& path = arguments.positionals()[1];
  client::WeightUpload upload;
  upload.id = arguments.positionals()[0];
  upload.layout = RequiredLayout(arguments);
  const NpyArray data = ReadNpy(path);
  if (data.type != NpyType::kInt8)
    throw Failure(kExitFile, path + ": a weight is int8, this is " + std::string(NameOf(data.type)),
                  "quantize it first: q = round(w / scale).astype('int8'), and give --scales");
  if (data.shape.size() != 2)
    throw Failure(kExitFile,
                  path + ": a weight has 2 dimensions, this has shape " + ShapeText(data.shape));
  upload.k = data.shape[upload.layout == Layout::kKN ? 0 : 1];
  upload.n = data.shape[upload.layout == Layout::kKN ? 1 : 0];
  std::vector<std::byte> packed;
  PackValues(arguments, data, path, &packed, &upload);
  NpyArray scales, bias;
  if (const auto file = arguments.Text("--scales")) {
    scales = ReadNpy(*file);
    upload.scales = ReadScales(scales, *file, arguments.Has("--bf16-scales"));
  }
  if (const auto file = arguments.Text("--bias")) {
    bias = ReadNpy(*file);
    upload.bias = ReadBias(bias, *file);
  }
  upload.replace = arguments.Has("--replace");
  upload.replace_digest = arguments.Text("--replace-digest").value_or("");

  client::Client client(OptionsOf(arguments));
  const auto registration = Upload(client, upload);
  if (arguments.Has("--json")) {
    PrintJson(ToJson(registration));
  } else {
    const std::string how = registration.already_registered
                                ? "already on the server, nothing uploaded"
                                : BytesText(registration.uploaded_bytes) + " uploaded";
    std::printf("%s  K %lld  N %lld  %s  (%s)\n", registration.weight.id.c_str(),
                static_cast<long long>(registration.weight.k),
                static_cast<long long>(registration.weight.n), registration.weight.digest.c_str(),
                how.c_str());
  }
  return kExitOk;
}

int RunList(const Arguments& arguments) {
  client::Client client(OptionsOf(arguments));
  const auto weights = ValueOf(client.ListWeights(), client);
  if (arguments.Has("--json")) {
    Json list = Json::array();
    for (const auto& weight : weights) list.push_back(ToJson(weight));
    PrintJson({{"weights", list}});
    return kExitOk;
  }
  TextTable table({"ID", "TYPE", "LAYOUT", "K", "N", "SCALES", "BIAS", "DEVICE MEMORY", "DIGEST"});
  for (const auto& w : weights)
    table.Add({w.id, std::string(NameOf(w.dtype)), std::string(NameOf(w.layout)),
               std::to_string(w.k), std::to_string(w.n), ScalesText(w),
               w.bias_count > 0 ? "yes" : "-", CopyBytesText(w), w.digest.substr(0, 12)});
  std::fputs(table.ToString().c_str(), stdout);
  std::printf("%zu weight%s\n", weights.size(), weights.size() == 1 ? "" : "s");
  return kExitOk;
}

int RunShow(const Arguments& arguments) {
  client::Client client(OptionsOf(arguments));
  const auto weight = ValueOf(client.GetWeight(arguments.positionals()[0]), client);
  if (arguments.Has("--json")) PrintJson(ToJson(weight));
  else PrintWeight(weight);
  return kExitOk;
}

int RunDelete(const Arguments& arguments) {
  client::Client client(OptionsOf(arguments));
  Json deleted = Json::array();
  for (const std::string& id : arguments.positionals()) {
    const int64_t freed = ValueOf(client.DeleteWeight(id), client);
    deleted.push_back({{"id", id}, {"freed_bytes", freed}});
    if (!arguments.Has("--json"))
      std::printf("%s deleted, %s freed\n", id.c_str(), BytesText(freed).c_str());
  }
  if (arguments.Has("--json")) PrintJson({{"deleted", deleted}});
  return kExitOk;
}

}  // namespace qmatmul::cli
