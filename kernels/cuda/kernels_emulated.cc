// The kernels compiled for the host: entries for runtime_emulated.cc.
#include <array>

#include "kernels/cuda/listed_kernels.h"

namespace qmatmul::cuda {
namespace {

using Entry = void (*)(const void*);

struct Table {
  std::array<Entry, kKernelCount> entries = {};
  std::array<KernelShape, kKernelCount> shapes = {};

  Table() {
    ForEachKernel([this](KernelId id, auto listed, int rows, int columns) {
      using Kernel = typename decltype(listed)::type;
      entries[size_t(id)] = [](const void* args) {
        Kernel::Run(*static_cast<const ArgsOf<Kernel>*>(args));
      };
      shapes[size_t(id)] = {Kernel::kThreads, Kernel::kSharedBytes, rows, columns};
    });
  }
};

const Table& TheTable() {
  static const Table table;
  return table;
}

}  // namespace

Entry EntryOf(KernelId id) { return TheTable().entries[size_t(id)]; }
KernelShape ShapeOf(KernelId id) { return TheTable().shapes[size_t(id)]; }

}  // namespace qmatmul::cuda
