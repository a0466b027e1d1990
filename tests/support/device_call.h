// One request on one packed weight through the Device door, with all that the Run said of it.
//
// Thread-safety: values.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device.h"
#include "tests/support/guarded_buffer.h"
#include "tests/support/test_tensors.h"

namespace qmatmul::test {

struct DeviceCall {
  Fault fault;       // of the Run or, when that was well, of its segment
  RunReport report;  // its names live as long as the device
  Outcome outcome;
  std::vector<std::byte> bytes;  // dense [rows, n]
  bool intact = false;  // nothing before the output was written; past it is a faulting page

  template <typename T>
  std::vector<T> As() const {
    std::vector<T> values(bytes.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
    return values;
  }
};

// `kernel` and `threads_max` as in Work: empty, the device chooses; 0, the whole team.
inline DeviceCall CallDevice(Device* device, const std::shared_ptr<const PackedWeight>& weight,
                             const TestActivations& activations, const Epilogue& epilogue,
                             std::string_view kernel = {},
                             Arithmetic arithmetic = Arithmetic::kW8A8, int threads_max = 0) {
  DeviceCall call;
  const int64_t row_bytes = weight->spec().n * BitsOf(epilogue.dtype) / 8;
  const GuardedBuffer memory(static_cast<size_t>(row_bytes * activations.rows));
  const ActivationView view = activations.view();
  SegmentOutput output;
  output.epilogue = epilogue;
  output.view = {memory.data(), row_bytes};
  RowSegment segment;
  segment.activations = &view;
  segment.rows = activations.rows;
  segment.outputs = {&output, 1};
  const WorkStep step{{&weight, 1}, arithmetic, {}};
  call.fault = device->Run({{&segment, 1}, {&step, 1}, kernel, threads_max}, &call.report);
  if (call.fault.ok()) call.fault = segment.fault;
  call.outcome = output.outcome;
  call.bytes.assign(memory.data(), memory.data() + memory.bytes());
  call.intact = memory.IntactBefore();
  return call;
}

// Null when the device refuses the weight.
inline std::shared_ptr<const PackedWeight> PackOn(Device* device, const TestWeight& weight) {
  std::shared_ptr<const PackedWeight> packed;
  const Fault fault = device->Pack(weight.view(), &packed);
  EXPECT_TRUE(fault.ok()) << fault.reason << ": " << fault.message;
  return packed;
}

}  // namespace qmatmul::test
