// What a lane did lately, kept as captured graphs: small products of one shape come again and again, and a
// graph costs one submission where its copies and launches cost one each.
//
// Why whole operations are the key, and not weight, rows and types: what is done again is then what would be
// done, addresses and all, whatever those depend on. Memory that moved or a weight that went makes other
// operations, never a wrong graph.
//
// Thread-safety: one thread at a time, that of the lane. Ownership: the graphs are the cache's; the runtime
// outlives it.
//
// Invariants
//   1. A graph is done again only in place of operations equal to those it was made of, byte for byte.
//   2. At most kEntriesMax are remembered; the one that was not wanted for longest goes first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/runtime.h"

namespace qmatmul::cuda {

// A thing to be put on a stream.
struct Operation {
  enum class Kind : uint8_t { kUpload, kLaunch, kDownload };
  Kind kind = Kind::kLaunch;
  std::byte* to = nullptr;  // of copies
  const std::byte* from = nullptr;
  int64_t bytes = 0;
  KernelLaunch launch;

  bool operator==(const Operation&) const;
};

class GraphCache {
 public:
  static constexpr size_t kEntriesMax = 32;

  explicit GraphCache(Runtime* runtime) : runtime_(runtime) {}
  ~GraphCache();
  GraphCache(const GraphCache&) = delete;
  GraphCache& operator=(const GraphCache&) = delete;

  // Puts the operations on the stream. Those that come for the second time are captured; from then on, as
  // long as they are remembered, the graph is put there in their place, and `replayed` says so.
  Error Enqueue(Stream stream, std::vector<Operation> operations, bool* replayed);
  // One by one.
  static Error EnqueueAll(Runtime* runtime, Stream stream, std::span<const Operation> operations);

  size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    std::vector<Operation> operations;
    uint64_t last_use = 0;
    bool tried = false;     // to capture them
    Graph graph = nullptr;  // null until then, and where the driver does not capture
  };
  Entry* Find(const std::vector<Operation>& operations);
  void Remember(std::vector<Operation> operations);

  Runtime* const runtime_;
  std::vector<Entry> entries_;
  uint64_t uses_ = 0;
};

}  // namespace qmatmul::cuda
