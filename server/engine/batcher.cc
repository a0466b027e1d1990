#include "server/engine/batcher.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>

namespace qmatmul {
namespace {

// How long after a small request its like are still expected.
constexpr int64_t kSmallMemoryNs = 1'000'000'000;
// Bounds of what a refused client is told to wait: long enough to matter, short enough to notice
// room.
constexpr int64_t kRetryNsMin = 1'000'000;
constexpr int64_t kRetryNsMax = 1'000'000'000;
// Joining so many rows of small requests costs little beyond the first: it is the weights that are
// read. Batches may be so large whatever their predicted time.
constexpr int64_t kJoinedRows = 32;
// A part of a large request has at least so many rows, or reading the weights would be all it does.
constexpr int64_t kTileRows = 8;
// Sizes that a batch's rows are limited to: multiples of the kernels' row tiles where it matters.
constexpr std::array<int64_t, 12> kRowSteps = {8,   16,  32,  48,  64,  96,
                                               128, 192, 256, 384, 512, 1024};

void AppendBytes(int64_t value, std::string* key) {
  char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  key->append(bytes, sizeof bytes);
}

// What must be equal for two requests to share a batch.
std::string KeyOf(const Request& request) {
  std::string key;
  key.reserve(8 * (request.weights.size() + 2 * request.then.size()) + 1 + request.kernel.size());
  for (const WeightPtr& weight : request.weights) AppendBytes(weight->content->generation, &key);
  for (const ChainLink& link : request.then) {
    AppendBytes(link.weight->content->generation, &key);
    AppendBytes(static_cast<int64_t>(link.arithmetic), &key);
  }
  key.push_back(static_cast<char>(request.arithmetic));
  key.append(request.kernel);
  return key;
}

bool IsDead(const Request& request, int64_t now_ns) {
  return !request.status.ok() || request.cancelled.load(std::memory_order_relaxed) ||
         now_ns > request.deadline_ns;
}

}  // namespace

Batcher::Batcher(const BatcherLimits& limits, const Clock& clock, Predictor predictor)
    : limits_(limits), clock_(clock), predictor_(std::move(predictor)) {}

Status Batcher::QueueFull(const char* what, const char* limit_name, int64_t value,
                          int64_t limit) const {
  Status status = Status{Code::kUnavailable, "QUEUE_FULL",
                         std::to_string(value) + " " + what + ", the limit " + limit_name + " is " +
                             std::to_string(limit) + "; try again later or at another server"}
                      .With("value", std::to_string(value))
                      .With("limit", std::to_string(limit));
  status.retry_after_ns = std::clamp(backlog_ns(), kRetryNsMin, kRetryNsMax);
  return status;
}

// Time until a request that joins `group` now would be done, at most. Clients of one group take turns, and
// so do groups: of the others as much is ahead as this one has itself, and no more.
int64_t Batcher::AheadNs(const Request& request, int64_t own_ns, const Group* group) const {
  int64_t mine_ns = own_ns;
  if (group != nullptr) {
    int64_t line_rows = request.activations.rows, rows = 0;
    for (const Line& line : group->lines)
      if (line.client == request.client) line_rows += line.rows;
    for (const Line& line : group->lines)
      if (line.client != request.client) rows += std::min(line.rows, line_rows);
    mine_ns = predictor_(request, rows + line_rows);
  }
  const int64_t turns_ns = (mine_ns / limits_.batch_ns_max + 1) * limits_.batch_ns_max;
  int64_t ahead_ns = running_ns_ + mine_ns;
  for (const Group* other : turns_)
    if (other != group) ahead_ns += std::min(other->predicted_ns, turns_ns);
  return ahead_ns;
}

Status Batcher::MayPush(const Request& request, int64_t own_ns, const Group* group) const {
  if (stopped_) {
    Status status{Code::kUnavailable, "DRAINING", "the server is shutting down; try another"};
    status.retry_after_ns = kRetryNsMax;
    return status;
  }
  if (queued() >= limits_.requests_max)
    return QueueFull("requests wait", "queue_requests_max", queued(), limits_.requests_max);
  if (queued() >= kFewRequests && backlog_ns() > limits_.queue_ns_max) {
    const int64_t ahead_ns = AheadNs(request, own_ns, group);
    if (ahead_ns > limits_.queue_ns_max)
      return QueueFull("ns of predicted work are ahead", "queue_ms_max (in ns)", ahead_ns,
                       limits_.queue_ns_max);
  }
  const int64_t rows = request.activations.rows;
  if (queued_rows() > 0 && queued_rows() + rows > limits_.rows_max)
    return QueueFull("rows would wait", "queue_rows_max", queued_rows() + rows, limits_.rows_max);
  if (group != nullptr && group->rows + rows > limits_.weight_rows_max)
    return QueueFull("rows would wait for these weights", "queue_weight_rows_max",
                     group->rows + rows, limits_.weight_rows_max);
  if (group != nullptr && group->bytes + request.bytes > limits_.weight_bytes_max)
    return QueueFull("bytes would wait for these weights", "queue_weight_bytes_max",
                     group->bytes + request.bytes, limits_.weight_bytes_max);
  if (request.deadline_ns == kNoDeadline) return {};
  const int64_t left_ns = request.deadline_ns - clock_.NowNs();
  if (backlog_ns() + own_ns <= left_ns) return {};
  const int64_t ahead_ns = AheadNs(request, own_ns, group);
  if (ahead_ns <= left_ns) return {};
  return Status{Code::kDeadlineExceeded, "DEADLINE_UNREACHABLE",
                "the answer is predicted in " + std::to_string(ahead_ns / 1000) +
                    " us, the deadline is in " + std::to_string(left_ns / 1000) +
                    " us; allow more time, or send to a server with less to do"}
      .With("value", std::to_string(left_ns))
      .With("limit", std::to_string(ahead_ns));
}

Status Batcher::Push(Request* request) {
  std::string key = KeyOf(*request);
  const int64_t own_ns = predictor_(*request, request->activations.rows);
  {
    const std::lock_guard lock(mutex_);
    const auto found = groups_.find(key);
    const Group* known = found == groups_.end() ? nullptr : &found->second;
    if (Status status = MayPush(*request, own_ns, known); !status.ok()) return status;
    Group& group = known != nullptr ? found->second : groups_[key];
    if (known == nullptr) {
      group.key = std::move(key);
      group.oldest_ns = clock_.NowNs();
      turns_.push_back(&group);
    }
    Append(group, request, own_ns);
  }
  wake_.notify_one();
  return {};
}

void Batcher::Append(Group& group, Request* request, int64_t own_ns) {
  auto line = std::find_if(group.lines.begin(), group.lines.end(),
                           [&](const Line& l) { return l.client == request->client; });
  if (line == group.lines.end()) line = group.lines.insert(line, Line{request->client});
  request->next = nullptr;
  request->rows_taken = 0;
  request->rows_left = request->activations.rows;
  if (line->first == nullptr) line->first = request;
  else line->last->next = request;
  line->last = request;
  line->rows += request->activations.rows;
  group.rows += request->activations.rows;
  group.bytes += request->bytes;
  requests_.fetch_add(1, std::memory_order_relaxed);
  rows_.fetch_add(request->activations.rows, std::memory_order_relaxed);
  Predict(group);
  if (own_ns <= limits_.batch_ns_max) small_seen_ns_ = clock_.NowNs();
}

// Joined rows cost less than each alone, so a group is predicted as a whole.
void Batcher::Predict(Group& group) {
  const int64_t before_ns = group.predicted_ns;
  const auto line = std::find_if(group.lines.begin(), group.lines.end(),
                                 [](const Line& l) { return l.first != nullptr; });
  group.predicted_ns = line == group.lines.end() ? 0 : predictor_(*line->first, group.rows);
  backlog_ns_.fetch_add(group.predicted_ns - before_ns, std::memory_order_relaxed);
}

bool Batcher::GathersOn(const Group& group, int64_t now_ns) const {
  return !stopped_ && limits_.delay_ns_max > 0 && group.rows < limits_.batch_rows_max &&
         now_ns < group.oldest_ns + limits_.delay_ns_max;
}

bool Batcher::Take(Batch* batch, std::vector<Request*>* dropped) {
  batch->pieces.clear();
  batch->rows = 0;
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [this] { return stopped_ || (!held_ && !turns_.empty()); });
  if (turns_.empty()) return false;
  for (int64_t now = clock_.NowNs(); GathersOn(*turns_.front(), now); now = clock_.NowNs()) {
    const int64_t left_ns = turns_.front()->oldest_ns + limits_.delay_ns_max - now;
    wake_.wait_for(lock, std::chrono::nanoseconds(left_ns));
  }
  Group& group = *turns_.front();
  turns_.pop_front();
  Fill(group, batch, dropped);
  Predict(group);
  if (batch->rows > 0) running_ns_ = predictor_(*batch->pieces.front().request, batch->rows);
  backlog_ns_.fetch_add(running_ns_, std::memory_order_relaxed);
  if (group.lines.empty()) {
    groups_.erase(groups_.find(group.key));
  } else {
    group.oldest_ns = clock_.NowNs();
    turns_.push_back(&group);
  }
  return true;
}

void Batcher::Done() {
  const std::lock_guard lock(mutex_);
  backlog_ns_.fetch_sub(running_ns_, std::memory_order_relaxed);
  running_ns_ = 0;
}

void Batcher::Hold(bool held) {
  {
    const std::lock_guard lock(mutex_);
    held_ = held;
  }
  wake_.notify_all();
}

void Batcher::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  wake_.notify_all();
}

// Asks the lines in turn for one piece each, until the batch is full or a round brings nothing.
void Batcher::Fill(Group& group, Batch* batch, std::vector<Request*>* dropped) {
  const int64_t now_ns = clock_.NowNs();
  const Request& sample = *group.lines.front().first;
  const int64_t large_rows =
      std::min(limits_.batch_rows_max, RowsWithin(sample, limits_.batch_ns_max));
  const int64_t rows_max = std::min(limits_.batch_rows_max, std::max(kJoinedRows, large_rows));
  Tile tile{.large_rows = large_rows, .rows = rows_max, .room = rows_max};
  if (now_ns - small_seen_ns_ < kSmallMemoryNs) {
    tile.rows = std::min(rows_max, RowsWithin(sample, limits_.tile_ns_max));
    tile.room = tile.rows;
  }
  for (Line& line : group.lines) line.rows_in_batch = 0;
  bool progress = true;
  while (progress && batch->rows < rows_max) {
    progress = false;
    for (size_t asked = group.lines.size(); asked > 0 && batch->rows < rows_max; --asked) {
      group.turn = group.turn < group.lines.size() ? group.turn : 0;
      Line& line = group.lines[group.turn];
      DropDead(group, line, now_ns, dropped);
      // Beside a tile of a large request everybody has as much as that tile, so that none starves the others.
      const bool had_its_share = tile.is_taken && line.rows_in_batch >= tile.rows;
      if (line.first != nullptr && !had_its_share)
        progress |= TakePiece(group, line, &tile, rows_max - batch->rows, batch);
      if (line.first == nullptr)
        group.lines.erase(group.lines.begin() + static_cast<std::ptrdiff_t>(group.turn));
      else ++group.turn;
    }
  }
  // All were asked as often: the next batch begins with another one, or its tile would always be the same
  // line's.
  if (batch->rows < rows_max) group.turn = group.turn < group.lines.size() ? group.turn + 1 : 1;
}

// False when the line's first request does not fit any more.
bool Batcher::TakePiece(Group& group, Line& line, Tile* tile, int64_t room, Batch* batch) {
  Request& request = *line.first;
  const int64_t left = request.activations.rows - request.rows_taken;
  const bool is_large = request.activations.rows > tile->large_rows;
  // It has room in the next batch, whole.
  if (!is_large && left > room && !batch->pieces.empty()) return false;
  const int64_t rows = is_large ? std::min({left, tile->room, room}) : left;
  if (rows == 0) return false;
  if (is_large) {
    tile->room -= rows;
    tile->is_taken = true;
  }
  batch->pieces.push_back({&request, request.rows_taken, rows});
  batch->rows += rows;
  request.rows_taken += rows;
  line.rows -= rows;
  line.rows_in_batch += rows;
  group.rows -= rows;
  rows_.fetch_sub(rows, std::memory_order_relaxed);
  if (rows == left) PopFirst(group, line);
  return true;
}

void Batcher::DropDead(Group& group, Line& line, int64_t now_ns, std::vector<Request*>* dropped) {
  while (line.first != nullptr && IsDead(*line.first, now_ns)) {
    const int64_t rows = line.first->activations.rows - line.first->rows_taken;
    line.rows -= rows;
    group.rows -= rows;
    rows_.fetch_sub(rows, std::memory_order_relaxed);
    dropped->push_back(line.first);
    PopFirst(group, line);
  }
}

void Batcher::PopFirst(Group& group, Line& line) {
  group.bytes -= line.first->bytes;
  line.first = line.first->next;
  requests_.fetch_sub(1, std::memory_order_relaxed);
}

// The largest step whose predicted time is within `ns`, or the least there is.
int64_t Batcher::RowsWithin(const Request& request, int64_t ns) const {
  const auto end = std::partition_point(kRowSteps.begin(), kRowSteps.end(), [&](int64_t rows) {
    return predictor_(request, rows) <= ns;
  });
  return end == kRowSteps.begin() ? kTileRows : *(end - 1);
}

}  // namespace qmatmul
