// The kernels compiled for the device: entries for runtime_cuda.cu.
#include <array>

#include "kernels/cuda/listed_kernels.h"

namespace qmatmul::cuda {
namespace {

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads)
    Entry(const __grid_constant__ ArgsOf<Kernel> args) {
  Kernel::Run(args);
}

struct Table {
  std::array<const void*, kKernelCount> entries = {};
  std::array<KernelShape, kKernelCount> shapes = {};

  Table() {
    ForEachKernel([this](KernelId id, auto listed, int rows, int columns) {
      using Kernel = typename decltype(listed)::type;
      entries[size_t(id)] = reinterpret_cast<const void*>(&Entry<Kernel>);
      shapes[size_t(id)] = {Kernel::kThreads, Kernel::kSharedBytes, rows, columns};
    });
  }
};

const Table& TheTable() {
  static const Table table;
  return table;
}

}  // namespace

const void* EntryOf(KernelId id) { return TheTable().entries[size_t(id)]; }
KernelShape ShapeOf(KernelId id) { return TheTable().shapes[size_t(id)]; }

}  // namespace qmatmul::cuda
