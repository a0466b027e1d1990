#include "kernels/cuda/graph_cache.h"

#include <algorithm>
#include <utility>

namespace qmatmul::cuda {

bool Operation::operator==(const Operation& other) const {
  if (kind != other.kind || to != other.to || from != other.from || bytes != other.bytes)
    return false;
  if (kind != Kind::kLaunch) return true;
  const KernelLaunch& a = launch;
  const KernelLaunch& b = other.launch;
  return a.id == b.id && a.grid_x == b.grid_x && a.grid_y == b.grid_y && a.grid_z == b.grid_z &&
         a.args == b.args;
}

GraphCache::~GraphCache() {
  for (const Entry& entry : entries_)
    if (entry.graph != nullptr) runtime_->DestroyGraph(entry.graph);
}

Error GraphCache::EnqueueAll(Runtime* runtime, Stream stream,
                             std::span<const Operation> operations) {
  for (const Operation& op : operations) {
    Error error =
        op.kind == Operation::Kind::kUpload   ? runtime->Upload(stream, op.to, op.from, op.bytes)
        : op.kind == Operation::Kind::kLaunch ? runtime->Launch(stream, op.launch)
                                              : runtime->Download(stream, op.to, op.from, op.bytes);
    if (!error.ok()) return error;
  }
  return {};
}

GraphCache::Entry* GraphCache::Find(const std::vector<Operation>& operations) {
  const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) {
    return entry.operations == operations;
  });
  return found == entries_.end() ? nullptr : &*found;
}

void GraphCache::Remember(std::vector<Operation> operations) {
  if (entries_.size() == kEntriesMax) {
    const auto oldest =
        std::min_element(entries_.begin(), entries_.end(),
                         [](const Entry& a, const Entry& b) { return a.last_use < b.last_use; });
    if (oldest->graph != nullptr) runtime_->DestroyGraph(oldest->graph);
    std::swap(*oldest, entries_.back());
    entries_.pop_back();
  }
  entries_.push_back({std::move(operations), uses_, false, nullptr});
}

Error GraphCache::Enqueue(Stream stream, std::vector<Operation> operations, bool* replayed) {
  *replayed = false;
  ++uses_;
  Entry* const entry = Find(operations);
  if (entry == nullptr) {
    Error error = EnqueueAll(runtime_, stream, operations);
    if (error.ok()) Remember(std::move(operations));
    return error;
  }
  entry->last_use = uses_;
  if (!std::exchange(entry->tried, true)) {
    const auto enqueue = [&] { return EnqueueAll(runtime_, stream, entry->operations); };
    if (Error error = runtime_->Capture(stream, enqueue, &entry->graph); !error.ok()) return error;
  }
  if (entry->graph == nullptr) return EnqueueAll(runtime_, stream, operations);
  *replayed = true;
  return runtime_->Replay(stream, entry->graph);
}

}  // namespace qmatmul::cuda
