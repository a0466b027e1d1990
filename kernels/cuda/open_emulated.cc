// The device table's view of an emulated machine: one GPU, in whose blocks and threads nothing has an order.
#include "kernels/cuda/runtime_emulated.h"

namespace qmatmul::cuda {

std::vector<std::unique_ptr<Runtime>> OpenRuntimes(std::string* /*why_none*/) {
  EmulatedOptions options;
  options.order = simt::Order::kRandom;
  options.seed = 6;
  std::vector<std::unique_ptr<Runtime>> runtimes;
  runtimes.push_back(std::make_unique<EmulatedRuntime>(options));
  return runtimes;
}

}  // namespace qmatmul::cuda
