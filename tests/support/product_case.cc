#include "tests/support/product_case.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "kernels/reference.h"
#include "tests/support/reference_call.h"

namespace qmatmul::test {
namespace {

constexpr uint8_t kUntouched = 0xA5;

// One step's weights, packed and decoded.
struct Step {
  std::vector<std::shared_ptr<const PackedWeight>> packed;
  std::vector<ReferenceWeight> decoded;
  Arithmetic arithmetic = Arithmetic::kW8A8;
};

// One request's outputs in guarded memory, and the segments that fill them.
struct RunningRequest {
  const ProductRequest* request = nullptr;
  ActivationView view;
  std::vector<std::unique_ptr<GuardedBuffer>> outputs;  // one per weight
  std::vector<std::unique_ptr<GuardedBuffer>> indices;  // one per weight, with top_k
  std::vector<std::vector<uint64_t>> checks;            // one per weight
  std::vector<float> scales_used;
  std::vector<std::pair<int64_t, int64_t>> ranges;
  std::vector<std::vector<SegmentOutput>> segment_outputs;  // by segment, by weight
};

// Columns of the results of weight `w` of the last step, before top_k.
int64_t ColumnsOf(const ProductCase& product, size_t w) {
  return product.then.empty() ? product.weights[w].spec.n : product.then.back().weight.spec.n;
}

int64_t TopKOf(const ProductRequest& request, size_t w) {
  return request.top_k.empty() ? 0 : request.top_k[w];
}

// Bytes of a row that are written.
int64_t UsedBytes(const ProductCase& product, const ProductRequest& request, size_t w) {
  const int64_t top_k = TopKOf(request, w);
  return (top_k > 0 ? top_k : ColumnsOf(product, w)) * BitsOf(request.epilogues[w].dtype) / 8;
}

int64_t RowBytes(const ProductCase& product, const ProductRequest& request, size_t w) {
  return UsedBytes(product, request, w) + request.row_gap_bytes;
}

std::vector<std::vector<uint32_t>> CheckVectorsOf(const ProductCase& product) {
  Random random(77);
  std::vector<std::vector<uint32_t>> vectors;
  for (size_t w = 0; w < product.weights.size(); w++) {
    vectors.emplace_back();
    for (int64_t n = 0; n < ColumnsOf(product, w); n++)
      vectors.back().push_back(static_cast<uint32_t>(random.Between(1, (int64_t{1} << 31) - 1)));
  }
  return vectors;
}

// Whether the last step quantizes its activations per row.
bool LastIsDynamic(const ProductCase& product, const TestActivations& activations) {
  if (product.then.empty()) return activations.quantization == Quantization::kDynamic;
  return product.then.back().arithmetic == Arithmetic::kW8A8;
}

std::unique_ptr<RunningRequest> Prepare(const ProductCase& product, const ProductRequest& request) {
  auto running = std::make_unique<RunningRequest>();
  running->request = &request;
  running->view = request.activations.view();
  const int64_t rows = request.activations.rows;
  running->ranges = request.segments;
  if (running->ranges.empty()) running->ranges.push_back({0, rows});
  if (LastIsDynamic(product, request.activations))
    running->scales_used.assign(static_cast<size_t>(rows), -1.0f);
  for (size_t w = 0; w < product.weights.size(); w++) {
    // The last row ends at the wall, without its gap.
    const int64_t bytes =
        rows == 0 ? 0 : rows * RowBytes(product, request, w) - request.row_gap_bytes;
    running->outputs.push_back(
        std::make_unique<GuardedBuffer>(static_cast<size_t>(bytes), kUntouched));
    // One byte short of alignment, and of the wall.
    const auto columns = static_cast<size_t>(rows * TopKOf(request, w));
    running->indices.push_back(std::make_unique<GuardedBuffer>(columns * 4 + 1, kUntouched));
    running->checks.emplace_back(product.row_checks ? static_cast<size_t>(rows) : 0, 1);
  }
  for (size_t s = 0; s < running->ranges.size(); s++) {
    running->segment_outputs.emplace_back();
    for (size_t w = 0; w < product.weights.size(); w++) {
      SegmentOutput output;
      output.epilogue = request.epilogues[w];
      output.view = {running->outputs[w]->data(), RowBytes(product, request, w)};
      output.row_checks = running->checks[w];
      output.top_k = TopKOf(request, w);
      if (output.top_k > 0) output.indices = running->indices[w]->data();
      running->segment_outputs.back().push_back(output);
    }
  }
  return running;
}

// Rows [begin, begin + rows) of a request as a request of its own.
TestActivations Slice(const TestActivations& all, int64_t begin, int64_t rows) {
  TestActivations part = all;
  part.rows = rows;
  const std::vector<std::byte> bytes = all.bytes();
  const int64_t row_bytes = all.k * BitsOf(all.dtype) / 8;
  part.SetBytes({bytes.begin() + begin * row_bytes, bytes.begin() + (begin + rows) * row_bytes});
  if (all.scales.size() > 1)
    part.scales = {all.scales.begin() + begin, all.scales.begin() + begin + rows};
  if (all.zero_points.size() > 1)
    part.zero_points = {all.zero_points.begin() + begin, all.zero_points.begin() + begin + rows};
  return part;
}

// The first difference of `rows` rows, in words; empty when there is none.
std::string FirstDifference(const std::byte* got, int64_t stride,
                            const std::vector<std::byte>& want, int64_t rows, int64_t row_bytes,
                            int64_t element_bytes) {
  int64_t wrong = 0;
  std::string first;
  for (int64_t m = 0; m < rows; m++) {
    for (int64_t i = 0; i < row_bytes; i += element_bytes) {
      const std::byte* g = got + m * stride + i;
      const std::byte* w = want.data() + m * row_bytes + i;
      if (std::memcmp(g, w, static_cast<size_t>(element_bytes)) == 0 || wrong++ > 0) continue;
      uint32_t got_bits = 0, want_bits = 0;
      std::memcpy(&got_bits, g, static_cast<size_t>(element_bytes));
      std::memcpy(&want_bits, w, static_cast<size_t>(element_bytes));
      char text[120];
      std::snprintf(text, sizeof text, "[%lld, %lld] is 0x%x, not 0x%x", static_cast<long long>(m),
                    static_cast<long long>(i / element_bytes), got_bits, want_bits);
      first = text;
    }
  }
  return wrong == 0 ? "" : std::to_string(wrong) + " elements differ; the first: " + first;
}

void CompareOutcome(const Outcome& got, const Outcome& want, int64_t row_begin) {
  EXPECT_EQ(got.overflow_count, want.overflow_count);
  const bool any = want.overflow_count > 0;
  EXPECT_EQ(got.first_overflow_row, any ? want.first_overflow_row + row_begin : -1);
  EXPECT_EQ(got.first_overflow_column, want.first_overflow_column);
}

// The rows alone through the reference: a chain is separate calls.
ReferenceResult Want(const ProductCase& product, const std::vector<Step>& steps, size_t w,
                     const ProductRequest& request, TestActivations activations,
                     std::span<const uint32_t> check_vector) {
  for (size_t s = 0; s + 1 < steps.size(); s++) {
    const ReferenceResult y = Multiply(steps[s].decoded[0], activations.view(), steps[s].arithmetic,
                                       request.intermediates[s]);
    if (!y.fault.ok()) return y;
    TestActivations next;
    next.dtype = DataType::kF32;
    next.rows = activations.rows;
    next.k = steps[s].decoded[0].spec.n;
    next.SetBytes(y.bytes);
    if (steps[s + 1].arithmetic == Arithmetic::kW8A8) next.quantization = Quantization::kDynamic;
    activations = std::move(next);
  }
  if (!product.row_checks) check_vector = {};
  return Multiply(steps.back().decoded[w], activations.view(), steps.back().arithmetic,
                  request.epilogues[w], check_vector);
}

// Dense rows of n values to their top_k: what ReferenceTopK says.
void SelectFrom(std::vector<std::byte>* bytes, DataType dtype, int64_t n, int64_t top_k,
                std::vector<std::byte>* indices) {
  const int64_t element_bytes = BitsOf(dtype) / 8;
  std::vector<std::byte> selected;
  for (auto row = bytes->begin(); row != bytes->end(); row += n * element_bytes) {
    for (int32_t column : ReferenceTopK(&*row, dtype, n, top_k)) {
      const auto value = row + column * element_bytes;
      selected.insert(selected.end(), value, value + element_bytes);
      const auto* raw = reinterpret_cast<const std::byte*>(&column);
      indices->insert(indices->end(), raw, raw + 4);
    }
  }
  *bytes = std::move(selected);
}

void CompareOutput(const ProductCase& product, const RunningRequest& running, size_t w,
                   const RowSegment& segment, ReferenceResult want) {
  const SegmentOutput& output = segment.outputs[w];
  const int64_t begin = segment.row_begin;
  CompareOutcome(output.outcome, want.details.outcome, begin);
  for (int64_t m = 0; product.row_checks && m < segment.rows; m++)
    EXPECT_EQ(output.row_checks[static_cast<size_t>(begin + m)],
              want.details.row_checks[static_cast<size_t>(m)]);
  for (size_t m = 0; m < want.details.scales_used.size(); m++)
    EXPECT_EQ(segment.scales_used[static_cast<size_t>(begin) + m], want.details.scales_used[m]);
  const Epilogue& epilogue = output.epilogue;
  if (epilogue.overflow == Overflow::kError && want.details.outcome.overflow_count > 0)
    return;  // void
  if (output.top_k > 0) {
    std::vector<std::byte> indices;
    SelectFrom(&want.bytes, epilogue.dtype, ColumnsOf(product, w), output.top_k, &indices);
    EXPECT_EQ(FirstDifference(output.indices + begin * output.top_k * 4, output.top_k * 4, indices,
                              segment.rows, output.top_k * 4, 4),
              "")
        << "columns of top_k = " << output.top_k;
  }
  EXPECT_EQ(FirstDifference(output.view.data + begin * output.view.row_bytes, output.view.row_bytes,
                            want.bytes, segment.rows, UsedBytes(product, *running.request, w),
                            BitsOf(epilogue.dtype) / 8),
            "");
}

// One segment against the reference of its rows alone.
void CompareSegment(const ProductCase& product, const std::vector<Step>& steps,
                    const std::vector<std::vector<uint32_t>>& check_vectors,
                    const RunningRequest& running, const RowSegment& segment) {
  const int64_t begin = segment.row_begin;
  const TestActivations part = Slice(running.request->activations, begin, segment.rows);
  for (size_t w = 0; w < product.weights.size(); w++) {
    const Epilogue& epilogue = running.request->epilogues[w];
    SCOPED_TRACE("weight " + std::to_string(w) + ", rows from " + std::to_string(begin) + " of " +
                 std::to_string(running.request->activations.rows) + ", activations " +
                 std::string(NameOf(part.dtype)) + ", output " +
                 std::string(NameOf(epilogue.dtype)) + ", " +
                 std::string(NameOf(epilogue.overflow)));
    ReferenceResult want = Want(product, steps, w, *running.request, part, check_vectors[w]);
    EXPECT_EQ(segment.fault.reason, want.fault.reason)
        << segment.fault.message << want.fault.message;
    if (want.fault.ok()) CompareOutput(product, running, w, segment, std::move(want));
  }
}

// Gaps between rows, rows of no segment, and memory before the output.
void CompareUntouched(const ProductCase& product, const RunningRequest& running) {
  std::vector<bool> covered(static_cast<size_t>(running.view.rows), false);
  for (auto [begin, rows] : running.ranges)
    for (int64_t m = begin; m < begin + rows; m++) covered[static_cast<size_t>(m)] = true;
  const auto compare = [&](const GuardedBuffer& buffer, int64_t row_bytes, int64_t used) {
    EXPECT_TRUE(buffer.IntactBefore()) << "memory before the output was written";
    for (size_t i = 0; i < buffer.bytes(); i++) {
      const auto row = row_bytes == 0 ? running.view.rows : static_cast<int64_t>(i) / row_bytes;
      const auto column = static_cast<int64_t>(i) - row * row_bytes;
      if (row < running.view.rows && column < used && covered[static_cast<size_t>(row)]) continue;
      ASSERT_EQ(buffer.data()[i], std::byte{kUntouched})
          << "byte " << i << " is nobody's and was written";
    }
  };
  for (size_t w = 0; w < running.outputs.size(); w++) {
    const ProductRequest& request = *running.request;
    compare(*running.outputs[w], RowBytes(product, request, w), UsedBytes(product, request, w));
    compare(*running.indices[w], TopKOf(request, w) * 4, TopKOf(request, w) * 4);
  }
}

void RunAndCompare(Device* device, std::string_view kernel, const ProductCase& product,
                   int threads_max, const std::vector<Step>& steps) {
  SCOPED_TRACE(product.name + ", kernel '" + std::string(kernel) + "', threads_max " +
               std::to_string(threads_max));
  const auto check_vectors = CheckVectorsOf(product);
  const std::vector<std::span<const uint32_t>> check_spans(check_vectors.begin(),
                                                           check_vectors.end());
  std::vector<std::unique_ptr<RunningRequest>> requests;
  std::vector<RowSegment> segments;
  std::vector<const RunningRequest*> owners;
  int64_t rows_total = 0;
  for (const ProductRequest& request : product.requests) {
    requests.push_back(Prepare(product, request));
    RunningRequest& running = *requests.back();
    for (size_t s = 0; s < running.ranges.size(); s++) {
      RowSegment segment;
      segment.activations = &running.view;
      segment.row_begin = running.ranges[s].first;
      segment.rows = running.ranges[s].second;
      segment.outputs = running.segment_outputs[s];
      segment.scales_used = running.scales_used;
      segment.intermediates = request.intermediates;
      segments.push_back(segment);
      owners.push_back(&running);
      rows_total += segment.rows;
    }
  }
  std::vector<WorkStep> work_steps;
  for (const Step& step : steps) work_steps.push_back({step.packed, step.arithmetic, {}});
  work_steps.back().check_vectors = check_spans;
  RunReport report;
  const Fault fault = device->Run({segments, work_steps, kernel, threads_max}, &report);
  ASSERT_TRUE(fault.ok()) << fault.reason << ": " << fault.message;
  EXPECT_EQ(report.rows, rows_total);
  const size_t kernels = std::max(product.weights.size(), steps.size());
  for (size_t i = 0; i < kernels; i++) {
    if (kernel.empty()) EXPECT_NE(report.kernels[i], "");
    else EXPECT_EQ(report.kernels[i], kernel);
  }
  for (size_t s = 0; s < segments.size(); s++)
    CompareSegment(product, steps, check_vectors, *owners[s], segments[s]);
  for (const auto& running : requests) CompareUntouched(product, *running);
}

}  // namespace

void CheckProduct(Device* device, std::string_view kernel, const ProductCase& product) {
  std::vector<Step> steps(1 + product.then.size());
  const auto add = [&](const TestWeight& weight, Step* step) {
    step->packed.emplace_back();
    Fault fault = device->Pack(weight.view(), &step->packed.back());
    ASSERT_TRUE(fault.ok()) << product.name << ": " << fault.reason << ": " << fault.message;
    step->decoded.emplace_back();
    fault = DecodeWeight(weight.view(), &step->decoded.back());
    ASSERT_TRUE(fault.ok()) << product.name << ": " << fault.reason << ": " << fault.message;
  };
  steps[0].arithmetic = product.arithmetic;
  for (const TestWeight& weight : product.weights) add(weight, steps.data());
  for (size_t s = 0; s < product.then.size(); s++) {
    steps[s + 1].arithmetic = product.then[s].arithmetic;
    add(product.then[s].weight, &steps[s + 1]);
  }
  if (testing::Test::HasFatalFailure()) return;
  for (int threads_max : {1, 0}) RunAndCompare(device, kernel, product, threads_max, steps);
}

std::vector<std::byte> RunOne(Device* device, std::string_view kernel, const TestWeight& weight,
                              const TestActivations& activations, const Epilogue& epilogue,
                              Outcome* outcome) {
  std::shared_ptr<const PackedWeight> packed;
  Fault fault = device->Pack(weight.view(), &packed);
  EXPECT_TRUE(fault.ok()) << fault.reason << ": " << fault.message;
  if (!fault.ok()) return {};
  const int64_t row_bytes = weight.spec.n * BitsOf(epilogue.dtype) / 8;
  std::vector<std::byte> bytes(static_cast<size_t>(row_bytes * activations.rows));
  const ActivationView view = activations.view();
  SegmentOutput output;
  output.epilogue = epilogue;
  output.view = {bytes.data(), row_bytes};
  RowSegment segment;
  segment.activations = &view;
  segment.rows = activations.rows;
  segment.outputs = {&output, 1};
  const WorkStep step{{&packed, 1}, Arithmetic::kW8A8, {}};
  RunReport report;
  fault = device->Run({{&segment, 1}, {&step, 1}, kernel, 0}, &report);
  EXPECT_TRUE(fault.ok()) << fault.reason << ": " << fault.message;
  EXPECT_TRUE(segment.fault.ok()) << segment.fault.reason << ": " << segment.fault.message;
  if (outcome != nullptr) *outcome = output.outcome;
  return bytes;
}

}  // namespace qmatmul::test
