// The server's /metrics, read as numbers: what a load run puts beside what it saw itself.
//
// Free functions without state; one plain HTTP GET on the calling thread.
#pragma once

#include <map>
#include <string>

namespace qmatmul::cli {

// Each sample by its name, labels and all. `address` is HOST:PORT. Failure (kExitUnreachable) when
// nobody answers there, or not with such a page.
std::map<std::string, double> ReadMetrics(const std::string& address);

// Mean microseconds that request, queue, compute and output took between two readings, a call.
std::map<std::string, double> MeanTimes(const std::map<std::string, double>& before,
                                        const std::map<std::string, double>& after);

}  // namespace qmatmul::cli
