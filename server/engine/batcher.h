// Requests that wait for one device, and which of their rows run next.
//
// Requests with the same weights, arithmetic and forced kernel share a batch, whatever their types and
// epilogues: the answer of a row does not depend on its neighbours. Nobody waits for company: while
// the device works, arrivals gather, and when it is free it takes what is there.
//
// Fairness: batches with different weights take turns; within one, so do the clients. A large request
// is cut into tiles of rows, so that a small one waits for a tile and not for all of it.
//
// Thread-safety: Push, Stop and the readings may be called from any thread, Take from one.
// Ownership: requests are borrowed. Clock and predictor outlive the batcher.
//
// Invariants
//   1. Every row of a pushed request is in exactly one batch, or the request is in one `dropped`.
//   2. A batch is closed when Take returns it; nothing joins it later.
//   3. What waits never exceeds the limits, save that one request may always wait for a weight.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "server/engine/clock.h"
#include "server/engine/request.h"
#include "server/engine/status.h"

namespace qmatmul {

// So many requests may wait however long they take: a few large products are no overload.
inline constexpr int64_t kFewRequests = 64;

struct BatcherLimits {
  int64_t requests_max = 1024;        // waiting, in all
  int64_t rows_max = 1 << 20;         // so
  int64_t weight_rows_max = 1 << 18;  // waiting for the same weights
  int64_t weight_bytes_max = int64_t{512} << 20;
  int64_t queue_ns_max = 500'000'000;  // predicted wait of a request, once kFewRequests wait
  int64_t batch_rows_max = 512;
  int64_t batch_ns_max = 10'000'000;  // predicted work of one batch
  int64_t tile_ns_max = 2'000'000;    // … of a large request's part, while small ones come
  int64_t delay_ns_max = 0;           // how long a batch that is not full waits for more
};

// Rows [row_begin, row_begin + rows) of a request.
struct BatchPiece {
  Request* request = nullptr;
  int64_t row_begin = 0;
  int64_t rows = 0;
};

struct Batch {
  std::vector<BatchPiece> pieces;  // not empty
  int64_t rows = 0;
};

class Batcher {
 public:
  // Predicted time of `rows` rows of the request's products on the whole device.
  using Predictor = std::function<int64_t(const Request& request, int64_t rows)>;

  Batcher(const BatcherLimits& limits, const Clock& clock, Predictor predictor);

  // Refuses, and leaves the request with the caller:
  //   kUnavailable       QUEUE_FULL, DRAINING
  //   kDeadlineExceeded  DEADLINE_UNREACHABLE: what is ahead takes longer than the request has
  Status Push(Request* request);
  // Blocks until there is work. `batch` may come back without pieces when all that was looked at was
  // dead: cancelled, late, or failed in an earlier piece; those are in `dropped` and need completion.
  // False when stopped and empty.
  bool Take(Batch* batch, std::vector<Request*>* dropped);
  // The batch that Take returned last has been computed.
  void Done();
  // While held, what comes is taken in and waits; Take blocks, until Stop at the latest.
  void Hold(bool held);
  // Refuses what comes; Take hands out the rest.
  void Stop();

  // Predicted time of what waits or runs.
  int64_t backlog_ns() const { return backlog_ns_.load(std::memory_order_relaxed); }
  int64_t queued() const { return requests_.load(std::memory_order_relaxed); }
  int64_t queued_rows() const { return rows_.load(std::memory_order_relaxed); }

 private:
  // One client's requests for one group, first come first served.
  struct Line {
    uint64_t client = 0;
    Request* first = nullptr;
    Request* last = nullptr;
    int64_t rows = 0;
    int64_t rows_in_batch = 0;  // of the one that is being filled
  };
  // What may share a batch.
  struct Group {
    std::string key;
    std::vector<Line> lines;
    size_t turn = 0;  // the line that is asked first
    int64_t rows = 0;
    int64_t bytes = 0;
    int64_t predicted_ns = 0;
    int64_t oldest_ns = 0;
  };

  // What large requests may have of a batch.
  struct Tile {
    int64_t large_rows = 0;  // a request of more is large
    int64_t rows = 0;
    int64_t room = 0;  // of those rows, not yet given away
    bool is_taken = false;
  };

  Status MayPush(const Request& request, int64_t own_ns, const Group* group) const;
  Status QueueFull(const char* what, const char* limit_name, int64_t value, int64_t limit) const;
  int64_t AheadNs(const Request& request, int64_t own_ns, const Group* group) const;
  void Append(Group& group, Request* request, int64_t own_ns);
  void Predict(Group& group);
  bool GathersOn(const Group& group, int64_t now_ns) const;
  void Fill(Group& group, Batch* batch, std::vector<Request*>* dropped);
  bool TakePiece(Group& group, Line& line, Tile* tile, int64_t room, Batch* batch);
  void DropDead(Group& group, Line& line, int64_t now_ns, std::vector<Request*>* dropped);
  void PopFirst(Group& group, Line& line);
  int64_t RowsWithin(const Request& request, int64_t ns) const;

  const BatcherLimits limits_;
  const Clock& clock_;
  const Predictor predictor_;
  std::atomic<int64_t> backlog_ns_{0};
  std::atomic<int64_t> requests_{0};
  std::atomic<int64_t> rows_{0};
  mutable std::mutex mutex_;  // guards what follows, and writes to the counts above
  std::condition_variable wake_;
  std::unordered_map<std::string, Group> groups_;
  std::deque<Group*> turns_;  // groups with requests, the next one first
  int64_t running_ns_ = 0;
  int64_t small_seen_ns_ = INT64_MIN / 2;  // when a small request last came
  bool held_ = false;
  bool stopped_ = false;
};

}  // namespace qmatmul
