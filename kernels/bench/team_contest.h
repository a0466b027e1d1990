// Our ThreadTeam beside pthreadpool (libpthreadpool-dev), which XNNPACK and others run on: what a
// fork and join costs while the members are awake and after they have gone to sleep, and how long a
// product's panels take when they are shared.
#pragma once

namespace qmatmul::bench {

// Prints one line a figure; with `json` one object a line. Without pthreadpool in the build, ours alone.
void PrintTeams(int threads, double seconds, bool json);

}  // namespace qmatmul::bench
