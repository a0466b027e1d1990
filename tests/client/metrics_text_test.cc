// The server's page of metrics as `qmatmul bench load --metrics` reads it, from a listener of this test's own.
#include "client/cli/metrics_text.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "client/cli/failure.h"

namespace qmatmul::cli {
namespace {

// Answers one caller with `page`, and keeps what was asked.
class OnePage {
 public:
  explicit OnePage(std::string page) {
    listener_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t bytes = sizeof address;
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), bytes), 0);
    EXPECT_EQ(listen(listener_, 1), 0);
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &bytes);
    address_ = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
    thread_ = std::thread([this, page = std::move(page)] {
      const int caller = accept(listener_, nullptr, nullptr);
      char piece[1024];
      while (asked_.find("\r\n\r\n") == std::string::npos) {
        const ssize_t got = recv(caller, piece, sizeof piece, 0);
        if (got <= 0) break;
        asked_.append(piece, static_cast<size_t>(got));
      }
      send(caller, page.data(), page.size(), MSG_NOSIGNAL);
      close(caller);
    });
  }
  ~OnePage() {
    if (thread_.joinable()) thread_.join();
    close(listener_);
  }
  const std::string& address() const { return address_; }
  const std::string& Asked() {
    thread_.join();
    return asked_;
  }

 private:
  int listener_ = -1;
  std::string address_, asked_;
  std::thread thread_;
};

TEST(MetricsText, SamplesByNameAndLabels) {
  OnePage server(
      "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
      "# HELP qmatmul_rows rows\n# TYPE qmatmul_rows counter\n"
      "qmatmul_rows 12\n" +
      std::string(40'000, '#') +  // more than one read takes
      "\nqmatmul_kernel_total{kernel=\"cpu.scalar\",m=\"m1\"} 3\n"
      "qmatmul_compute_seconds_sum 0.25\nprocess_cpu_seconds 7\nqmatmul_no_value\n");
  const auto samples = ReadMetrics(server.address());
  EXPECT_EQ(samples, (std::map<std::string, double>{
                         {"qmatmul_rows", 12},
                         {"qmatmul_kernel_total{kernel=\"cpu.scalar\",m=\"m1\"}", 3},
                         {"qmatmul_compute_seconds_sum", 0.25}}));
  EXPECT_TRUE(server.Asked().starts_with("GET /metrics HTTP/1.0\r\n"));
}

void ExpectNoMetrics(const std::string& address) {
  try {
    (void)ReadMetrics(address);
    ADD_FAILURE() << address;
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.exit_code(), kExitUnreachable);
    EXPECT_NE(std::string(failure.what()).find(address), std::string::npos) << failure.what();
  }
}

TEST(MetricsText, NobodyThereOrAnotherPageIsAFailure) {
  OnePage other("HTTP/1.1 404 Not Found\r\n\r\nnothing here 5\n");
  ExpectNoMetrics(other.address());
  ExpectNoMetrics("127.0.0.1:1");  // nobody listens
  ExpectNoMetrics("127.0.0.1");    // no port
  ExpectNoMetrics("127.0.0.1:http service");
}

TEST(MetricsText, MeanTimesAreOfWhatCameBetween) {
  const std::map<std::string, double> before = {{"qmatmul_queue_seconds_count", 10},
                                                {"qmatmul_queue_seconds_sum", 1},
                                                {"qmatmul_output_seconds_count", 4},
                                                {"qmatmul_output_seconds_sum", 4}};
  const std::map<std::string, double> after = {
      {"qmatmul_queue_seconds_count", 14},  {"qmatmul_queue_seconds_sum", 1.5},
      {"qmatmul_compute_seconds_count", 2}, {"qmatmul_compute_seconds_sum", 0.5},
      {"qmatmul_output_seconds_count", 4},  {"qmatmul_output_seconds_sum", 4}};
  EXPECT_EQ(MeanTimes(before, after),
            (std::map<std::string, double>{{"queue", 125'000}, {"compute", 250'000}}));
}

}  // namespace
}  // namespace qmatmul::cli
