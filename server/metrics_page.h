// The engine's counters in Prometheus' words, served on /metrics.
//
// Thread-safety: Collect may be called from any thread. Ownership: the engine outlives the page.
#pragma once

#include <prometheus/collectable.h>

#include <vector>

#include "server/engine/engine.h"

namespace qmatmul {

class MetricsPage final : public prometheus::Collectable {
 public:
  explicit MetricsPage(const Engine& engine) : engine_(engine), start_ns_(engine.clock().NowNs()) {}
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const Engine& engine_;
  const int64_t start_ns_;
};

}  // namespace qmatmul
