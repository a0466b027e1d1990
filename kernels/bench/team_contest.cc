#include "kernels/bench/team_contest.h"

#ifdef QMATMUL_PTHREADPOOL
#include <pthreadpool.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/bench/contest.h"
#include "kernels/bench/roof.h"
#include "kernels/cpu/activation_packer.h"
#include "kernels/cpu/micro_kernels.h"
#include "kernels/cpu/thread_team.h"

namespace qmatmul::bench {
namespace {

// Longer than any of them spins: pthreadpool's workers go on for a million steps, and would otherwise
// take a processor from the contender after it.
constexpr auto kNap = std::chrono::milliseconds(50);
// Pieces of a job of nothing: enough that stealing has something to share.
constexpr int64_t kEmptyUnits = 64;

// Somebody who runs `units` numbered pieces of work on all threads: f(begin, end).
struct Team {
  std::string name;
  std::function<void(int64_t units, const std::function<void(int64_t, int64_t)>& f)> run;
};

Team OurTeam(int threads, int spin_us_max) {
  const auto team = std::make_shared<cpu::ThreadTeam>(threads, spin_us_max);
  // As the tile loop does: an equal run of panels for each member.
  return {"qmatmul, spin " + std::to_string(spin_us_max) + " us",
          [team, threads](int64_t units, const std::function<void(int64_t, int64_t)>& f) {
            team->Run(threads, [&](int m) { f(units * m / threads, units * (m + 1) / threads); });
          }};
}

#ifdef QMATMUL_PTHREADPOOL
Team PthreadPool(int threads, bool yield, int64_t units_at_once) {
  const std::shared_ptr<pthreadpool> pool(pthreadpool_create(size_t(threads)), pthreadpool_destroy);
  const std::string split = units_at_once > 0 ? ", stealing" : ", equal parts";
  return {std::string("pthreadpool, workers ") + (yield ? "yield" : "spin") + split,
          [=](int64_t units, const std::function<void(int64_t, int64_t)>& f) {
            const int64_t tile =
                units_at_once > 0 ? units_at_once : (units + threads - 1) / threads;
            const auto part = [](void* context, size_t begin, size_t count) {
              (*static_cast<const std::function<void(int64_t, int64_t)>*>(context))(
                  int64_t(begin), int64_t(begin + count));
            };
            pthreadpool_parallelize_1d_tile_1d(
                pool.get(), part, const_cast<void*>(static_cast<const void*>(&f)), size_t(units),
                size_t(tile), yield ? PTHREADPOOL_FLAG_YIELD_WORKERS : 0);
          }};
}
#endif

std::vector<Team> Teams(int threads) {
  std::vector<Team> teams = {OurTeam(threads, 0), OurTeam(threads, 50)};
#ifdef QMATMUL_PTHREADPOOL
  for (const bool yield : {true, false})
    for (const int64_t units_at_once : {0, 4})
      teams.push_back(PthreadPool(threads, yield, units_at_once));
#endif
  return teams;
}

// The tiles of a product of m x k x n, by the panel: what the tile loop shares among its members.
class Panels {
 public:
  Panels(int64_t m, int64_t k, int64_t n)
      : kernel_(BestTile()), strips_((m + kernel_.mr - 1) / kernel_.mr) {
    tile_.lines = (k + cpu::kLineK - 1) / cpu::kLineK;
    tile_.panel_stride = tile_.lines * cpu::kLineValues;
    units_ = n / kernel_.nr;
    tile_.rows = static_cast<int>((m + strips_ - 1) / strips_);
    tile_.ldc = n;
    tile_.panels = kernel_.nr / int(cpu::kPanelColumns);
    weight_.resize(size_t(n / cpu::kPanelColumns * tile_.panel_stride) + 64, 1);
    sums_.resize(size_t(tile_.rows) * size_t(n));
    tile_.strip = strip_.Reserve(size_t(tile_.rows * tile_.lines * cpu::kLineK * 4));
    std::memset(strip_.Reserve(1), 0, size_t(tile_.rows * tile_.lines * cpu::kLineK * 4));
  }

  int64_t units() const { return units_; }
  void Multiply(int64_t begin, int64_t end) const {
    for (int64_t u = begin; u < end; ++u) {
      cpu::TileArgs t = tile_;
      t.panel = t.prefetch = Aligned() + u * t.panels * t.panel_stride;
      t.c = const_cast<int32_t*>(sums_.data()) + u * kernel_.nr;
      for (int64_t s = 0; s < strips_; ++s) kernel_.run(t);
    }
  }

 private:
  // The best tile of this machine that computes INT8 as it is.
  static const cpu::MicroKernel& BestTile() {
    const cpu::CpuFeatures features = cpu::DetectCpuFeatures();
    for (const cpu::MicroKernel* kernel : cpu::MicroKernels())
      if (kernel->supported(features) && kernel->mr > 1 && !kernel->split() &&
          kernel->release == nullptr && kernel->fits(DataType::kInt8, Arithmetic::kW8A8))
        return *kernel;
    return *cpu::MicroKernels().back();
  }
  const uint8_t* Aligned() const {
    const auto address = reinterpret_cast<uintptr_t>(weight_.data());
    return weight_.data() + (64 - address % 64) % 64;
  }

  const cpu::MicroKernel& kernel_;
  int64_t strips_;
  int64_t units_ = 0;
  cpu::TileArgs tile_{};
  std::vector<uint8_t> weight_;
  std::vector<int32_t> sums_;
  cpu::Arena strip_;
};

int64_t WallNs() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

void Print(bool json, const std::string& what, const std::vector<Contender>& contenders) {
  for (const Contender& c : contenders)
    std::printf(json ? "{\"what\":\"%s\",\"team\":\"%s\",\"ns\":%.0f,\"best_ns\":%.0f}\n"
                     : "%-34s %-44s %12.0f ns (best %.0f)\n",
                what.c_str(), c.name.c_str(), c.median_ns, c.best_ns);
  std::fflush(stdout);
}

// Each contender's time of `once`, which runs something on a team and returns its ns.
void Compare(bool json, const std::string& what, const std::vector<Team>& teams, double seconds,
             const std::function<double(const Team&, int count)>& once) {
  std::vector<Contender> contenders;
  contenders.reserve(teams.size());
  for (const Team& team : teams)
    contenders.push_back({team.name, [&](int count) { return once(team, count); }});
  Compete(&contenders, 31, seconds * double(contenders.size()));
  Print(json, what, contenders);
}

}  // namespace

void PrintTeams(int threads, double seconds, bool json) {
  const std::vector<Team> teams = Teams(threads);
  const auto back_to_back = [](const Team& team, int count, int64_t units, const auto& work) {
    std::this_thread::sleep_for(kNap);
    team.run(units, work);  // everybody is awake
    const int64_t start = WallNs();
    for (int i = 0; i < count; ++i) team.run(units, work);
    return double(WallNs() - start) / count;
  };
  const std::function<void(int64_t, int64_t)> nothing = [](int64_t, int64_t) {};
  Compare(json, "fork and join, again and again", teams, seconds, [&](const Team& team, int count) {
    return back_to_back(team, count, kEmptyUnits, nothing);
  });
  Compare(json, "fork and join after 50 ms of rest", teams, seconds, [&](const Team& team, int) {
    std::this_thread::sleep_for(kNap);
    const int64_t start = WallNs();
    team.run(kEmptyUnits, nothing);
    return double(WallNs() - start);
  });
  for (const auto& [m, k, n] : {std::array<int64_t, 3>{16, 384, 384}, {16, 4096, 4096}}) {
    const Panels panels(m, k, n);
    const std::function<void(int64_t, int64_t)> multiply = [&](int64_t begin, int64_t end) {
      panels.Multiply(begin, end);
    };
    Compare(json,
            "panels of " + std::to_string(m) + "," + std::to_string(k) + "," + std::to_string(n),
            teams, seconds, [&](const Team& team, int count) {
              return back_to_back(team, count, panels.units(), multiply);
            });
  }
}

}  // namespace qmatmul::bench
