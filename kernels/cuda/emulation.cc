#include "kernels/cuda/emulation.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

// Saves what a function must keep, takes the other stack and returns there.
extern "C" void QmatmulSwitchStack(void** save, void* load);
asm(R"(
.text
.globl QmatmulSwitchStack
.type QmatmulSwitchStack, @function
QmatmulSwitchStack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size QmatmulSwitchStack, .-QmatmulSwitchStack
)");

namespace qmatmul::cuda::simt {
namespace {

constexpr int kLanes = 32;
constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kSharedBytesMax = 256 << 10;
constexpr size_t kPage = 4096;
constexpr uint8_t kRubbish = 0xCD;

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "emulated launch: %s\n", what);
  std::abort();
}

struct Barrier {
  int arrived = 0;
  unsigned generation = 0;
};

struct Copy {
  unsigned char* to;
  const unsigned char* from;  // null: zeros
};

// Two slots, used in turn: a lane that is two collectives ahead has seen all others read the first.
struct Exchange {
  uint32_t a[kLanes][4];
  uint32_t b[kLanes][2];
  const unsigned char* rows[kLanes];
  int32_t product[kLanes][4];
};
struct Warp {
  Barrier barrier;
  Exchange slots[2];
};

struct Fiber {
  std::unique_ptr<char[]> stack;
  void* saved = nullptr;
  const Barrier* waits_for = nullptr;
  unsigned waits_since = 0;
  bool done = false;
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> committed;
};

// The machine of one host thread; stacks and shared memory are kept from launch to launch.
class Machine {
 public:
  Machine() {
    void* memory = mmap(nullptr, kSharedBytesMax + kPage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) Die("no memory for shared memory");
    shared_end_ = static_cast<unsigned char*>(memory) + kSharedBytesMax;
    if (mprotect(shared_end_, kPage, PROT_NONE) != 0) Die("no guard behind shared memory");
  }
  ~Machine() { munmap(shared_end_ - kSharedBytesMax, kSharedBytesMax + kPage); }

  void Run(const EmulatedLaunch& launch, void (*kernel)(const void*), const void* args) {
    if (launch.threads % kLanes != 0 || launch.threads <= 0 || launch.threads > 1024)
      Die("a block has whole warps, at most 1,024 threads");
    const size_t shared = (size_t(launch.shared_bytes) + 127) / 128 * 128;
    if (shared > kSharedBytesMax) Die("too much shared memory");
    launch_ = launch;
    kernel_ = kernel;
    args_ = args;
    shared_ = shared_end_ - shared;
    random_.seed(launch.seed);
    fibers_.resize(std::max(fibers_.size(), size_t(launch.threads)));
    warps_.resize(size_t(launch.threads / kLanes));
    std::vector<int64_t> blocks(size_t(int64_t(launch.grid.x) * launch.grid.y * launch.grid.z));
    std::iota(blocks.begin(), blocks.end(), 0);
    Permute(&blocks);
    for (const int64_t b : blocks) {
      block = {int(b % launch.grid.x), int(b / launch.grid.x % launch.grid.y),
               int(b / launch.grid.x / launch.grid.y)};
      RunBlock();
    }
  }

  void Wait(Barrier* barrier, int count) {
    const unsigned generation = barrier->generation;
    if (++barrier->arrived == count) {
      barrier->arrived = 0;
      ++barrier->generation;
      return;
    }
    Fiber& me = fibers_[size_t(thread)];
    me.waits_for = barrier;
    me.waits_since = generation;
    QmatmulSwitchStack(&me.saved, scheduler_);
  }

  // What the lanes gave, after all have; the last to come runs `finish` first.
  template <typename Give, typename Finish>
  Exchange& Collect(Give give, Finish finish) {
    Warp& warp = warps_[size_t(thread / kLanes)];
    Exchange& slot = warp.slots[warp.barrier.generation % 2];
    give(slot, thread % kLanes);
    if (warp.barrier.arrived + 1 == kLanes) finish(slot);
    Wait(&warp.barrier, kLanes);
    return slot;
  }
  template <typename Give>
  Exchange& Collect(Give give) {
    return Collect(give, [](Exchange&) {});
  }

  const EmulatedLaunch& launch() const { return launch_; }
  unsigned char* shared() const { return shared_; }
  Fiber& fiber() { return fibers_[size_t(thread)]; }
  void SyncBlock() { Wait(&barrier_, launch_.threads); }

  int thread = 0;
  Index block = {0, 0, 0};

  static Machine& Here() {
    static thread_local Machine machine;
    return machine;
  }

 private:
  template <typename T>
  void Permute(std::vector<T>* items) {
    if (launch_.order == Order::kReversed) std::reverse(items->begin(), items->end());
    if (launch_.order == Order::kRandom) std::shuffle(items->begin(), items->end(), random_);
  }

  static void Enter() {
    Machine& machine = Here();
    machine.kernel_(machine.args_);
    Fiber& me = machine.fiber();
    me.done = true;
    QmatmulSwitchStack(&me.saved, machine.scheduler_);
    Die("a finished thread was resumed");
  }

  void Start(Fiber* fiber) {
    if (fiber->stack == nullptr) fiber->stack.reset(new char[kStackBytes]);
    auto top = reinterpret_cast<uintptr_t>(fiber->stack.get() + kStackBytes) / 16 * 16;
    // NOLINTNEXTLINE(performance-no-int-to-ptr): rounded down as an integer
    auto* words = reinterpret_cast<void**>(top) - 2;  // as if called: 8 below a multiple of 16
    words[0] = reinterpret_cast<void*>(&Enter);
    std::fill_n(words - 6, 6, nullptr);
    fiber->saved = words - 6;
    fiber->waits_for = nullptr;
    fiber->done = false;
    fiber->open.clear();
    fiber->committed.clear();
  }

  void RunBlock() {
    std::memset(shared_, kRubbish, size_t(shared_end_ - shared_));
    barrier_ = {};
    for (Warp& warp : warps_) warp.barrier = {};
    std::vector<int> order(static_cast<size_t>(launch_.threads));
    std::iota(order.begin(), order.end(), 0);
    Permute(&order);
    for (const int t : order) Start(&fibers_[size_t(t)]);
    for (int left = launch_.threads; left > 0;) {
      bool moved = false;
      for (const int t : order) {
        Fiber& fiber = fibers_[size_t(t)];
        if (fiber.done) continue;
        if (fiber.waits_for != nullptr && fiber.waits_for->generation == fiber.waits_since)
          continue;
        fiber.waits_for = nullptr;
        thread = t;
        moved = true;
        QmatmulSwitchStack(&scheduler_, fiber.saved);
        left -= fiber.done;
      }
      if (!moved) Die("threads wait at a barrier that others never reach");
    }
  }

  EmulatedLaunch launch_;
  void (*kernel_)(const void*) = nullptr;
  const void* args_ = nullptr;
  unsigned char* shared_end_ = nullptr;
  unsigned char* shared_ = nullptr;
  void* scheduler_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  Barrier barrier_;
  std::mt19937_64 random_;
};

void Arrive(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies)
    if (copy.from == nullptr) std::memset(copy.to, 0, 16);
    else std::memcpy(copy.to, copy.from, 16);
}

// The warp's 16 × 8 products over 32 k, from the fragments of all lanes.
void MultiplyFragments(Exchange* slot) {
  int8_t a[16][32], b[8][32];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane >> 2, t = lane & 3;
    for (int r = 0; r < 4; ++r)
      std::memcpy(&a[g + 8 * (r & 1)][4 * t + 16 * (r >> 1)], &slot->a[lane][r], 4);
    for (int r = 0; r < 2; ++r) std::memcpy(&b[g][4 * t + 16 * r], &slot->b[lane][r], 4);
  }
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      int32_t sum = 0;
      for (int k = 0; k < 32; ++k) sum += int32_t(a[row][k]) * b[column][k];
      slot->product[(row & 7) * 4 + column / 2][2 * (row >> 3) + column % 2] = sum;
    }
}

}  // namespace

void Emulate(const EmulatedLaunch& launch, void (*kernel)(const void* args), const void* args) {
  Machine::Here().Run(launch, kernel, args);
}

int Thread() { return Machine::Here().thread; }
int Threads() { return Machine::Here().launch().threads; }
Index Block() { return Machine::Here().block; }
Index Grid() { return Machine::Here().launch().grid; }
void SyncThreads() { Machine::Here().SyncBlock(); }
void Trap() { Die("a trap"); }
unsigned char* Shared() { return Machine::Here().shared(); }

namespace {
Exchange& GiveWord(uint32_t value) {
  return Machine::Here().Collect([value](Exchange& slot, int lane) { slot.a[lane][0] = value; });
}
}  // namespace

int32_t WarpSum(int32_t value) {
  const Exchange& slot = GiveWord(uint32_t(value));
  uint32_t sum = 0;
  for (const auto& given : slot.a) sum += given[0];
  return int32_t(sum);
}

uint32_t WarpMax(uint32_t value) {
  for (const auto& given : GiveWord(value).a) value = std::max(value, given[0]);
  return value;
}

uint32_t WarpMin(uint32_t value) {
  for (const auto& given : GiveWord(value).a) value = std::min(value, given[0]);
  return value;
}

uint32_t WarpXor(uint32_t value, int mask) {
  const int lane = Machine::Here().thread % kLanes;
  return GiveWord(value).a[lane ^ mask][0];
}

void Mma(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Machine& machine = Machine::Here();
  const Exchange& slot = machine.Collect(
      [&](Exchange& given, int lane) {
        std::memcpy(given.a[lane], a, sizeof a);
        given.b[lane][0] = b0;
        given.b[lane][1] = b1;
      },
      [](Exchange& given) { MultiplyFragments(&given); });
  for (int r = 0; r < 4; ++r)
    c[r] = int32_t(uint32_t(c[r]) + uint32_t(slot.product[machine.thread % kLanes][r]));
}

void LoadMatrices(uint32_t (&r)[4], const unsigned char* row) {
  Machine& machine = Machine::Here();
  const Exchange& slot =
      machine.Collect([row](Exchange& given, int lane) { given.rows[lane] = row; });
  const int lane = machine.thread % kLanes, g = lane >> 2, t = lane & 3;
  for (int i = 0; i < 4; ++i) {
    if (reinterpret_cast<uintptr_t>(slot.rows[8 * i + g]) % 16 != 0)
      Die("a matrix row is not aligned");
    std::memcpy(&r[i], slot.rows[8 * i + g] + 4 * t, 4);
  }
}

void CopyAsync(unsigned char* shared, const unsigned char* global, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 ||
      (valid && reinterpret_cast<uintptr_t>(global) % 16 != 0))
    Die("an asynchronous copy is not aligned to 16 bytes");
  Machine::Here().fiber().open.push_back({shared, valid ? global : nullptr});
}

void CommitCopies() {
  Fiber& fiber = Machine::Here().fiber();
  fiber.committed.push_back(std::move(fiber.open));
  fiber.open.clear();
}

void WaitCopies(int pending) {
  auto& committed = Machine::Here().fiber().committed;
  while (committed.size() > size_t(pending)) {
    Arrive(committed.front());
    committed.erase(committed.begin());
  }
}

}  // namespace qmatmul::cuda::simt
