#include "tests/support/fake_device.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace qmatmul {
namespace {

// Row-major int8 [K,N], whatever the layout it was sent in; scales and bias widened.
class FakeWeight final : public PackedWeight {
 public:
  FakeWeight(const WeightSpec& spec, std::vector<std::byte> upload, FakeDevice* owner)
      : PackedWeight(spec, "plain.s8", owner->info().id),
        upload_(std::move(upload)),
        owner_(owner),
        returns_(owner->returns),
        sums_(spec.n) {
    for (int64_t k = 0; k < spec.k; ++k)
      for (int64_t n = 0; n < spec.n; ++n) sums_[n] += At(k, n);
    bytes_ = static_cast<int64_t>(upload_.size()) + spec.n * 4;
    owner_->packed_alive.fetch_add(1);
  }
  ~FakeWeight() override { owner_->packed_alive.fetch_sub(1); }

  std::span<const int32_t> column_sums() const override { return sums_; }
  const std::vector<std::byte>& upload() const { return upload_; }
  bool is_lost() const override { return owner_->lost || owner_->returns != returns_; }
  int32_t At(int64_t k, int64_t n) const {
    const int64_t at = spec().layout == Layout::kKN ? k * spec().n + n : n * spec().k + k;
    return static_cast<int8_t>(upload_[static_cast<size_t>(at)]);
  }
  float Scale(int64_t n) const {
    if (spec().scale_count == 0) return 1.0f;
    float scale = 0;
    const int64_t at = spec().data_bytes() + (spec().scale_count == 1 ? 0 : n * 4);
    std::memcpy(&scale, upload_.data() + at, sizeof scale);
    return scale;
  }

 private:
  std::vector<std::byte> upload_;
  FakeDevice* const owner_;
  const int returns_;  // of its owner before
  std::vector<int32_t> sums_;
};

Fault Lost() { return {FaultKind::kDeviceLost, "DEVICE_LOST", "the fake device is lost"}; }

class FakePacker final : public Packer {
 public:
  FakePacker(const WeightSpec& spec, FakeDevice* owner) : spec_(spec), owner_(owner) {}

  Fault Append(std::span<const std::byte> bytes) override {
    if (owner_->upload_bytes_left.fetch_sub(int64_t(bytes.size())) < int64_t(bytes.size()))
      return {FaultKind::kResourceExhausted, "DEVICE_MEMORY", "the fake device's memory is full"};
    upload_.insert(upload_.end(), bytes.begin(), bytes.end());
    return owner_->lost ? Lost() : Fault{};
  }
  Fault Finish(std::shared_ptr<const PackedWeight>* weight) override {
    const std::byte* scales = upload_.data() + spec_.data_bytes();
    for (int64_t i = 0; i < spec_.scale_count && spec_.scale_dtype == DataType::kF32; ++i) {
      float scale = 0;
      std::memcpy(&scale, scales + i * 4, sizeof scale);
      if (!std::isfinite(scale))
        return {FaultKind::kInvalidArgument, "SCALE_RANGE", "scale is not finite"};
    }
    *weight = std::make_shared<FakeWeight>(spec_, std::move(upload_), owner_);
    return {};
  }

 private:
  const WeightSpec spec_;
  FakeDevice* const owner_;
  std::vector<std::byte> upload_;
};

std::vector<std::byte> Gather(const ActivationView& a) {
  std::vector<std::byte> all;
  for (const ByteSpan& piece : a.bytes) all.insert(all.end(), piece.data, piece.data + piece.bytes);
  return all;
}

void WriteElement(const Epilogue& e, int32_t acc, float scale, std::byte* out,
                  SegmentOutput* output, int64_t m, int64_t n) {
  if (IsFloat(e.dtype)) {
    const float y = static_cast<float>(acc) * scale;
    std::memcpy(out, &y, sizeof y);
    return;
  }
  const int bytes = BitsOf(e.dtype) / 8;
  const int64_t top = (int64_t{1} << (8 * bytes - 1)) - 1;
  int64_t value = acc;
  if (value > top || value < -top - 1) {
    if (output->outcome.overflow_count++ == 0) {
      output->outcome.first_overflow_row = m;
      output->outcome.first_overflow_column = n;
    }
    if (e.overflow == Overflow::kSaturate) value = value > top ? top : -top - 1;
  }
  std::memcpy(out, &value, static_cast<size_t>(bytes));
}

void RunSegment(RowSegment& segment, size_t index, const FakeWeight& weight) {
  const ActivationView& a = *segment.activations;
  const std::vector<std::byte> bytes = Gather(a);
  SegmentOutput& output = segment.outputs[index];
  for (int64_t m = segment.row_begin; m < segment.row_begin + segment.rows; ++m) {
    for (int64_t n = 0; n < weight.spec().n; ++n) {
      int32_t acc = 0;
      for (int64_t k = 0; k < a.k; ++k) {
        const auto raw = static_cast<uint8_t>(bytes[static_cast<size_t>(m * a.k + k)]);
        const int32_t value = a.dtype == DataType::kUint8 ? raw : static_cast<int8_t>(raw);
        acc += (value - a.zero_point(m)) * weight.At(k, n);
      }
      std::byte* out =
          output.view.data + m * output.view.row_bytes + n * BitsOf(output.epilogue.dtype) / 8;
      const float sa = a.scales.empty() ? 1.0f : a.scale(m);
      WriteElement(output.epilogue, acc, weight.Scale(n) * sa, out, &output, m, n);
    }
  }
}

}  // namespace

FakeDevice::FakeDevice(std::string id, std::string kind) {
  info_.id = std::move(id);
  info_.kind = std::move(kind);
  info_.description = "a plain loop";
  info_.memory_bytes = int64_t{1} << 33;
}

void FakeDevice::CloseGate() {
  const std::lock_guard lock(mutex_);
  open_ = false;
}

void FakeDevice::OpenGate() {
  const std::lock_guard lock(mutex_);
  open_ = true;
  changed_.notify_all();
}

void FakeDevice::AwaitRuns(int count) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return runs.load() >= count; });
}

std::vector<KernelInfo> FakeDevice::Kernels() const {
  return {{kFakeKernelUnsupported, false, false, "this machine has no fake512", "plain.s8",
           DataType::kInt8, Arithmetic::kW8A8},
          {kFakeKernelDisabled, true, true, "disabled by configuration", "plain.s8",
           DataType::kInt8, Arithmetic::kW8A8},
          {kFakeKernel, true, false, "", "plain.s8", DataType::kInt8, Arithmetic::kW8A8}};
}

Fault FakeDevice::StartPack(const WeightSpec& spec, std::unique_ptr<Packer>* packer) {
  if (spec.dtype != DataType::kInt8 && refuse_int4)
    return {FaultKind::kUnimplemented, "WEIGHT_DTYPE_UNIMPLEMENTED", "this device packs INT8 only"};
  if (lost) return Lost();
  *packer = std::make_unique<FakePacker>(spec, this);
  return {};
}

Fault FakeDevice::Unpack(const PackedWeight& weight, int64_t k_begin, int64_t k_end,
                         std::span<int8_t> out) const {
  const auto& fake = static_cast<const FakeWeight&>(weight);
  size_t i = 0;
  for (int64_t k = k_begin; k < k_end; ++k)
    for (int64_t n = 0; n < weight.spec().n; ++n) out[i++] = static_cast<int8_t>(fake.At(k, n));
  return {};
}

Fault FakeDevice::ReadUpload(const PackedWeight& weight, int64_t begin,
                             std::span<std::byte> out) const {
  const auto& upload = static_cast<const FakeWeight&>(weight).upload();
  std::copy_n(upload.begin() + begin, out.size(), out.begin());
  return {};
}

Fault FakeDevice::Run(const Work& work, RunReport* report) {
  {
    std::unique_lock lock(mutex_);
    runs.fetch_add(1);
    threads_max = work.threads_max;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_ || work.threads_max == 1; });
  }
  const WorkStep& step = work.steps.front();
  for (RowSegment& segment : work.segments) {
    report->rows += segment.rows;
    if (IsFloat(segment.activations->dtype)) {
      segment.fault = {FaultKind::kInvalidArgument, "ACTIVATION_RANGE",
                       "the fake device takes no float activations"};
      continue;
    }
    for (size_t i = 0; i < step.weights.size(); ++i)
      RunSegment(segment, i, static_cast<const FakeWeight&>(*step.weights[i]));
  }
  // As late as can be: outcomes have been added to.
  if (lost) return Lost();
  if (scratch_is_short)
    return {FaultKind::kResourceExhausted, "SCRATCH_MEMORY", "the fake device has no scratch"};
  report->kernel = kFakeKernel;
  report->kernels.fill(report->kernel);
  report->compute_ns = 1000;
  return {};
}

std::vector<KernelChoice> FakeDevice::Explain(
    int64_t rows, std::span<const std::shared_ptr<const PackedWeight>> weights, Arithmetic,
    std::string_view) const {
  return {{kFakeKernel, true, true, predicted_ns, "the only one"},
          {kFakeKernelUnsupported, false, false, std::nullopt, "this machine has no fake512"}};
}

std::vector<QuarantineInfo> FakeDevice::Quarantined() const {
  if (!lost) return {};
  return {{info_.id, kFakeKernel, "lost", 1}};
}

bool FakeDevice::Rearm(std::string_view key) {
  rearms.fetch_add(1);
  if (!lost || !comes_back || key != info_.id) return false;
  returns.fetch_add(1);
  lost = false;
  return true;
}

int64_t FakeDevice::PredictNs(int64_t, const PackedWeight&, Arithmetic, int) const {
  return predicted_ns;
}

}  // namespace qmatmul
