// The least that an answer of given sizes can cost a gRPC server: takes the bytes of a request and
// returns as many as its first eight say. tests/figures divides by it.
//
// It serves MatMul as the real server does, by the callback API with raw messages, one reply written
// per call by the very path of gRPC; it reads nothing but those eight bytes, and the reply is a
// piece of one block of memory that is never written. What the real server needs beyond it is the
// service, and nothing else.
//   echo_server [ADDRESS]        default 127.0.0.1:0; prints "echo_server ready grpc=…"; SIGTERM
//   ends it
#include <absl/synchronization/mutex.h>
#include <grpcpp/grpcpp.h>
#include <malloc.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "qmatmul/v1/qmatmul.grpc.pb.h"

namespace {

constexpr size_t kReplyBytesMax = size_t{64} << 20;
constexpr int kMessageBytesMax = 64 << 20;

using Base =
    qmatmul::v1::MatMulService::WithRawCallbackMethod_MatMul<qmatmul::v1::MatMulService::Service>;

class Echo final : public Base {
 public:
  grpc::ServerUnaryReactor* MatMul(grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* request,
                                   grpc::ByteBuffer* reply) override {
    const grpc::Slice slice(block_.data(), ReplyBytes(*request), grpc::Slice::STATIC_SLICE);
    *reply = grpc::ByteBuffer(&slice, 1);
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  // 0 when the request has no eight bytes. They may lie in several pieces.
  static size_t ReplyBytes(const grpc::ByteBuffer& request) {
    std::vector<grpc::Slice> slices;
    uint64_t bytes = 0;
    size_t got = 0;
    if (!request.Dump(&slices).ok()) return 0;
    for (const grpc::Slice& slice : slices) {
      const size_t take = std::min(slice.size(), sizeof bytes - got);
      std::memcpy(reinterpret_cast<char*>(&bytes) + got, slice.begin(), take);
      got += take;
    }
    if (got < sizeof bytes) return 0;
    return static_cast<size_t>(std::min<uint64_t>(bytes, kReplyBytesMax));
  }

  const std::vector<char> block_ = std::vector<char>(kReplyBytesMax);
};

}  // namespace

int main(int argc, char** argv) {
  // As the server does at its start.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);
  const std::string address = argc > 1 ? argv[1] : "127.0.0.1:0";
  Echo echo;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  builder.SetMaxReceiveMessageSize(kMessageBytesMax);
  builder.SetMaxSendMessageSize(kMessageBytesMax);
  builder.RegisterService(&echo);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) {
    std::fprintf(stderr, "echo_server: cannot listen on %s\n", address.c_str());
    return 1;
  }
  const bool tcp = address.rfind("unix:", 0) != 0;
  const std::string where =
      tcp ? address.substr(0, address.rfind(':')) + ":" + std::to_string(port) : address;
  std::printf("echo_server ready grpc=%s\n", where.c_str());
  std::fflush(stdout);
  int signal = 0;
  sigwait(&ends, &signal);
  server->Shutdown();
  return 0;
}
