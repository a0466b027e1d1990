#include "client/cli/load_cases.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <thread>

#include "client/cli/failure.h"
#include "kernels/reference.h"

namespace qmatmul::cli {
namespace {

// The SDK's and the kernels' words have the same numbers for types and layouts.
static_assert(static_cast<int>(client::DataType::kInt2) == static_cast<int>(DataType::kInt2));
static_assert(static_cast<int>(client::DataType::kBF16) == static_cast<int>(DataType::kBF16));
static_assert(static_cast<int>(client::Layout::kNK) == static_cast<int>(Layout::kNK));

DataType TypeOf(client::DataType dtype) { return static_cast<DataType>(dtype); }

// One element, as the low bits of a number.
uint32_t RandomElement(client::DataType dtype, std::mt19937_64& random) {
  const uint64_t bits = random() >> 16;
  std::uniform_real_distribution<float> real(-4.0f, 4.0f);
  uint32_t word = 0;
  const float value = real(random);
  std::memcpy(&word, &value, sizeof word);
  switch (dtype) {
    case client::DataType::kInt2: return static_cast<uint32_t>(bits % 3);
    case client::DataType::kF32: return word;
    case client::DataType::kBF16: return word >> 16;
    // Sign, an exponent from 2^-7 to 2^2, any fraction.
    case client::DataType::kF16:
      return static_cast<uint32_t>((bits & 0x83ff) | (8 + bits / 65'536 % 10) << 10);
    default: return static_cast<uint32_t>(bits);
  }
}

Overflow OverflowOf(client::Overflow overflow) {
  if (overflow == client::Overflow::kWrap) return Overflow::kWrap;
  return overflow == client::Overflow::kError ? Overflow::kError : Overflow::kSaturate;
}

Epilogue EpilogueOf(const client::OutputSpec& output) {
  Epilogue e;
  e.dtype = TypeOf(output.dtype);
  e.overflow = OverflowOf(output.overflow);
  e.scaled = output.scale.has_value();
  e.scale = output.scale.value_or(1.0f);
  e.zero_point = output.zero_point.value_or(0);
  if (output.activation == client::Activation::kRelu) e.activation = Activation::kRelu;
  e.skip_bias = output.skip_bias;
  return e;
}

std::vector<size_t> WeightsOf(const LoadCase& one) {
  std::vector<size_t> weights = {one.weight};
  weights.insert(weights.end(), one.more_weights.begin(), one.more_weights.end());
  return weights;
}

[[noreturn]] void Refuse(const Fault& fault, const LoadCase& one) {
  throw Failure(kExitFile,
                "case '" + one.name + "' has no answer: " + fault.reason + ": " + fault.message);
}

ReferenceWeight Decode(const LoadWeight& weight, const LoadCase& one) {
  WeightView view;
  view.spec.dtype = TypeOf(weight.dtype);
  view.spec.layout = static_cast<Layout>(weight.layout);
  view.spec.k = weight.k;
  view.spec.n = weight.n;
  view.spec.group_size = weight.group_size;
  view.spec.scale_dtype = weight.scales.empty() ? DataType::kUnspecified : DataType::kF32;
  view.spec.scale_count = static_cast<int64_t>(weight.scales.size());
  view.spec.bias_count = static_cast<int64_t>(weight.bias.size());
  view.data = weight.data.data();
  view.scales = weight.scales.data();
  view.bias = weight.bias.data();
  ReferenceWeight decoded;
  if (const Fault fault = DecodeWeight(view, &decoded); !fault.ok()) Refuse(fault, one);
  return decoded;
}

std::vector<std::byte> Multiply(const ReferenceWeight& weight, const LoadCase& one) {
  const ByteSpan bytes{one.data.data(), one.data.size()};
  ActivationView activations;
  activations.dtype = TypeOf(one.activations);
  activations.rows = one.rows;
  activations.k = weight.spec.k;
  activations.bytes = {&bytes, 1};
  activations.quantization = one.dynamic          ? Quantization::kDynamic
                             : one.scales.empty() ? Quantization::kNone
                                                  : Quantization::kStatic;
  activations.scales = one.scales;
  activations.zero_points = one.zero_points;
  const Arithmetic arithmetic =
      one.options.arithmetic == client::Arithmetic::kW8A32 ? Arithmetic::kW8A32 : Arithmetic::kW8A8;
  const Epilogue epilogue = EpilogueOf(one.output);
  const int64_t row_bytes = weight.spec.n * BitsOf(epilogue.dtype) / 8;
  std::vector<std::byte> result(static_cast<size_t>(row_bytes * one.rows));
  ReferenceDetails details;
  const Fault fault = ReferenceMatMul(weight, activations, arithmetic, epilogue,
                                      {result.data(), row_bytes}, &details);
  if (!fault.ok()) Refuse(fault, one);
  return result;
}

}  // namespace

client::WeightUpload LoadWeight::Upload() const {
  client::WeightUpload upload;
  upload.id = id;
  upload.dtype = dtype;
  upload.layout = layout;
  upload.k = k;
  upload.n = n;
  upload.group_size = group_size;
  upload.data = data;
  if (!scales.empty()) upload.scales = client::Scales(scales);
  upload.bias = bias;
  return upload;
}

client::EncodedCall LoadCases::Encode(const LoadCase& one) const {
  client::Activations activations;
  activations.dtype = one.activations;
  activations.rows = one.rows;
  activations.k = weights[one.weight].k;
  activations.data = one.data;
  activations.dynamic = one.dynamic;
  if (!one.scales.empty()) activations.scales = client::Scales(one.scales);
  activations.zero_points = one.zero_points;
  std::vector<client::Product> products;
  for (size_t w : WeightsOf(one))
    products.push_back({.weight = weights[w].id, .output = one.output, .into = {}});
  return client::EncodedCall::MatMul(products, activations, one.options);
}

std::vector<client::LoadItem> LoadCases::Items() const {
  std::vector<client::LoadItem> items;
  for (const LoadCase& one : cases) {
    double ops = 0;
    for (size_t w : WeightsOf(one))
      ops += 2.0 * static_cast<double>(one.rows) * static_cast<double>(weights[w].k) *
             static_cast<double>(weights[w].n);
    items.push_back({Encode(one), one.share, one.rows, ops});
  }
  return items;
}

std::vector<std::byte> RandomElements(client::DataType dtype, int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  const int bits = client::BitsOf(dtype);
  std::vector<std::byte> bytes(static_cast<size_t>((count * bits + 7) / 8));
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t element = RandomElement(dtype, random);
    const auto at = static_cast<size_t>(i * bits / 8);
    if (bits >= 8) {
      std::memcpy(&bytes[at], &element, static_cast<size_t>(bits / 8));
    } else {
      const uint32_t kept = element & ((1u << bits) - 1);
      bytes[at] |= static_cast<std::byte>(kept << (i * bits % 8));
    }
  }
  return bytes;
}

LoadWeight RandomWeight(std::string id, int64_t k, int64_t n, uint64_t seed) {
  LoadWeight weight;
  weight.id = std::move(id);
  weight.k = k;
  weight.n = n;
  // As RandomElements would, at ten times the speed: a weight has millions of elements.
  weight.data.resize(static_cast<size_t>(k * n));
  std::mt19937_64 random(seed);
  for (size_t at = 0; at < weight.data.size(); at += 8) {
    const uint64_t bits = random();
    std::memcpy(&weight.data[at], &bits, std::min<size_t>(8, weight.data.size() - at));
  }
  return weight;
}

void AddRows(LoadCases* cases, size_t weight, int64_t rows, double share, int variants,
             const client::OutputSpec& output, uint64_t seed) {
  for (int i = 0; i < variants; ++i) {
    LoadCase one;
    one.name = std::to_string(rows) + " rows of " + cases->weights[weight].id;
    one.weight = weight;
    one.rows = rows;
    one.share = share / variants;
    one.data = RandomElements(client::DataType::kInt8, rows * cases->weights[weight].k,
                              seed + static_cast<uint64_t>(i));
    one.output = output;
    cases->cases.push_back(std::move(one));
  }
}

std::vector<std::vector<std::byte>> ReferenceBytes(const LoadCases& cases) {
  std::vector<ReferenceWeight> weights(cases.weights.size());
  for (const LoadCase& one : cases.cases)
    for (size_t w : WeightsOf(one))
      if (weights[w].values.empty()) weights[w] = Decode(cases.weights[w], one);
  std::vector<std::vector<std::byte>> expected(cases.cases.size());
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < expected.size(); i = next++) {
      const LoadCase& one = cases.cases[i];
      for (size_t w : WeightsOf(one)) {
        const auto output = Multiply(weights[w], one);
        expected[i].insert(expected[i].end(), output.begin(), output.end());
      }
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 1; i < std::thread::hardware_concurrency(); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  return expected;
}

}  // namespace qmatmul::cli
