#include "client/cli/metrics_text.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <sstream>

#include "client/cli/failure.h"

namespace qmatmul::cli {
namespace {

constexpr timeval kPatience{5, 0};

// An open connection, or -1.
int Connect(const std::string& host, const std::string& port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) return -1;
  int connection = -1;
  for (addrinfo* a = found; a != nullptr && connection < 0; a = a->ai_next) {
    connection = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
    if (connection < 0) continue;
    setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof kPatience);
    if (connect(connection, a->ai_addr, a->ai_addrlen) == 0) break;
    close(connection);
    connection = -1;
  }
  freeaddrinfo(found);
  return connection;
}

std::string Get(const std::string& address) {
  const size_t colon = address.rfind(':');
  const int connection = colon == std::string::npos
                             ? -1
                             : Connect(address.substr(0, colon), address.substr(colon + 1));
  std::string page;
  if (connection < 0) return page;
  const std::string ask =
      "GET /metrics HTTP/1.0\r\nHost: " + address + "\r\nConnection: close\r\n\r\n";
  if (send(connection, ask.data(), ask.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(ask.size())) {
    char piece[16'384];
    for (ssize_t got; (got = recv(connection, piece, sizeof piece, 0)) > 0;)
      page.append(piece, static_cast<size_t>(got));
  }
  close(connection);
  return page;
}

}  // namespace

std::map<std::string, double> ReadMetrics(const std::string& address) {
  std::map<std::string, double> samples;
  std::istringstream lines(Get(address));
  for (std::string line; std::getline(lines, line);) {
    const size_t space = line.rfind(' ');
    if (line.rfind("qmatmul_", 0) == 0 && space != std::string::npos)
      samples[line.substr(0, space)] = std::strtod(line.c_str() + space, nullptr);
  }
  if (samples.empty())
    throw Failure(kExitUnreachable, "no metrics of qmatmul at http://" + address + "/metrics",
                  "--metrics takes the HOST:PORT of the server's --http-listen");
  return samples;
}

std::map<std::string, double> MeanTimes(const std::map<std::string, double>& before,
                                        const std::map<std::string, double>& after) {
  std::map<std::string, double> times;
  const auto grown = [&](const std::string& name) {
    const auto a = after.find(name), b = before.find(name);
    return a == after.end() ? 0 : a->second - (b == before.end() ? 0 : b->second);
  };
  for (const char* name : {"queue", "compute", "output", "request"}) {
    const std::string family = std::string("qmatmul_") + name + "_seconds";
    const double count = grown(family + "_count");
    if (count > 0) times[name] = grown(family + "_sum") / count * 1e6;
  }
  return times;
}

}  // namespace qmatmul::cli
