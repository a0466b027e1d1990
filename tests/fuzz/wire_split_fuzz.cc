// Differential fuzz target: whatever the bytes and wherever they are cut, what the splitter and the
// generated parser make of them together is what the generated parser makes of them alone.
//
// The first bytes of the input say where the message is cut; the rest is the message, read as both of
// the types that the splitter serves. A difference aborts. libFuzzer and AFL can link this entry point;
// driver.cc is for machines that have neither.
#include <google/protobuf/stubs/logging.h>
#include <google/protobuf/util/message_differencer.h>

#include <cstdio>
#include <cstdlib>

#include "qmatmul/v1/qmatmul.pb.h"
#include "server/wire_bytes.h"

namespace {

using qmatmul::ByteSpan;
using qmatmul::MatMulBuffers;

constexpr size_t kCuts = 4;

// Each piece in memory of its own size, so that reading past it is seen.
std::vector<std::string> Pieces(const uint8_t* cuts, const std::string& message) {
  std::vector<std::string> pieces;
  size_t begin = 0;
  for (size_t i = 0; i < kCuts && begin < message.size(); ++i) {
    const size_t bytes = cuts[i] * message.size() / 1024;
    pieces.push_back(message.substr(begin, bytes));  // may be empty
    begin += bytes;
  }
  pieces.push_back(message.substr(std::min(begin, message.size())));
  return pieces;
}

qmatmul::v1::ActivationTensor* Activations(qmatmul::v1::MatMulRequest* m) {
  return m->mutable_activations();
}
qmatmul::v1::ActivationTensor* Activations(qmatmul::v1::StreamMatMulRequest* m) {
  return m->mutable_request()->mutable_activations();
}

[[noreturn]] void Differ(const char* what, const std::string& message) {
  std::fprintf(stderr, "wire_split_fuzz: %s, %zu bytes:", what, message.size());
  for (const char c : message) std::fprintf(stderr, " %02x", static_cast<unsigned char>(c));
  std::fprintf(stderr, "\n");
  std::abort();
}

template <class Message>
void Compare(const uint8_t* cuts, const std::string& bytes) {
  Message alone;
  const bool valid = alone.ParseFromString(bytes);
  const std::vector<std::string> pieces = Pieces(cuts, bytes);
  std::vector<ByteSpan> spans;
  for (const std::string& piece : pieces)
    spans.push_back({reinterpret_cast<const std::byte*>(piece.data()), piece.size()});
  Message envelope;
  MatMulBuffers buffers;
  if (qmatmul::ReadMessage(spans, &envelope, &buffers) != valid)
    Differ(valid ? "refused" : "taken", bytes);
  if (!valid) return;
  std::string payload;
  for (const ByteSpan& piece : buffers.payload)
    payload.append(reinterpret_cast<const char*>(piece.data), piece.bytes);
  if (!payload.empty()) Activations(&envelope)->set_data(payload);
  if (!google::protobuf::util::MessageDifferencer::Equals(alone, envelope))
    Differ("read differently", bytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // What it says of each malformed input would be all that is printed.
  static const google::protobuf::LogSilencer silence;
  if (size < kCuts) return 0;
  const std::string message(reinterpret_cast<const char*>(data + kCuts), size - kCuts);
  Compare<qmatmul::v1::MatMulRequest>(data, message);
  Compare<qmatmul::v1::StreamMatMulRequest>(data, message);
  return 0;
}
