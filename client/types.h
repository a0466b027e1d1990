// The words of the C++ SDK: what a caller describes (WeightUpload, Activations, Product) and what
// comes back (Registration, Output, Explanation, …). The fields mean what the fields of the same
// name in proto/qmatmul/v1/qmatmul.proto mean; that file is the reference for limits and errors.
//
// Plain values, not synchronised. Every member has an initializer, so that {.field = …} names only
// what matters and compiles without a warning. A std::span borrows: what it points to must live until the call
// that takes it returns. Everything that comes back owns its memory.
//
// Bytes are row-major and little-endian. F16 is IEEE binary16, BF16 the upper half of IEEE
// binary32.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace qmatmul::client {

enum class DataType : uint8_t {
  kUnspecified,
  kInt8,
  kUint8,
  kInt16,
  kInt32,
  kF32,
  kF16,
  kBF16,
  kInt4,
  kInt2
};
enum class Layout : uint8_t { kUnspecified, kKN, kNK };
enum class Overflow : uint8_t { kUnspecified, kSaturate, kWrap, kError };
enum class Activation : uint8_t { kUnspecified, kNone, kRelu };
enum class Arithmetic : uint8_t { kUnspecified, kW8A8, kW8A32 };

// "INT8", "KN", "SATURATE", … as the proto's names end.
std::string_view NameOf(DataType dtype);
std::string_view NameOf(Layout layout);
std::string_view NameOf(Overflow overflow);
std::string_view NameOf(Activation activation);
std::string_view NameOf(Arithmetic arithmetic);
// Bits of one element of a plain tensor; 0 for kUnspecified.
int BitsOf(DataType dtype);

// Scale factors: F32, F16 or BF16 values, borrowed.
struct Scales {
  DataType dtype = DataType::kUnspecified;
  std::span<const std::byte> bytes = {};

  Scales() = default;
  Scales(DataType type, std::span<const std::byte> data) : dtype(type), bytes(data) {}
  explicit Scales(std::span<const float> values)
      : dtype(DataType::kF32), bytes(std::as_bytes(values)) {}
  int64_t count() const;
};

// ---- Weights ----

struct WeightUpload {
  std::string id = {};  // without "weights/"
  DataType dtype = DataType::kUnspecified;
  Layout layout = Layout::kUnspecified;
  int64_t k = 0;
  int64_t n = 0;
  int64_t group_size = 0;
  std::span<const std::byte> data = {};
  Scales scales = {};
  std::span<const float> bias = {};
  bool replace = false;             // the name may move to this content, whatever it holds
  std::string replace_digest = {};  // … or only if it holds this digest now
};

// The weight's identity: SHA-256 over its identity line, data, scales and bias; 64 hex characters.
std::string DigestOf(const WeightUpload& weight);

struct WeightCopy {
  std::string device = {};
  std::string layout = {};
  int64_t bytes = 0;
};

// A device that holds no copy, and why.
struct WeightAbsence {
  std::string device = {};
  std::string reason = {};
};

struct WeightInfo {
  std::string id = {};
  DataType dtype = DataType::kUnspecified;
  Layout layout = Layout::kUnspecified;
  int64_t k = 0;
  int64_t n = 0;
  int64_t group_size = 0;
  DataType scale_dtype = DataType::kUnspecified;
  int64_t scale_count = 0;
  int64_t bias_count = 0;
  std::string digest = {};
  int64_t generation = 0;
  int64_t create_time_ns = 0;
  std::vector<WeightCopy> copies = {};
  std::vector<WeightAbsence> absences = {};
};

struct Registration {
  WeightInfo weight = {};
  bool already_registered = false;  // the server knew the content
  int64_t uploaded_bytes = 0;       // data, scales and bias that were sent; 0 when it was known
};

// Called on the calling thread while an upload runs.
using UploadProgress = std::function<void(int64_t sent_bytes, int64_t total_bytes)>;

// ---- MatMul ----

// [rows, k] activations.
struct Activations {
  DataType dtype = DataType::kUnspecified;
  int64_t rows = 0;
  int64_t k = 0;
  std::span<const std::byte> data = {};
  bool dynamic = false;  // float activations: one scale a row, computed by the server
  Scales scales = {};    // static scales: none, 1 or `rows`
  std::span<const int32_t> zero_points = {};  // none, 1 or `rows`
  // Keeps `data` alive and unchanged. With it, 64 KiB and more travel without a copy; without it they
  // are copied once, because a connection that stalls may hold them longer than the call lasts.
  std::shared_ptr<const void> owner = {};
};

struct OutputSpec {
  DataType dtype = DataType::kUnspecified;
  Overflow overflow = Overflow::kUnspecified;
  std::optional<float> scale = {};
  std::optional<int32_t> zero_point = {};
  Activation activation = Activation::kUnspecified;
  int64_t top_k = 0;
  bool skip_bias = false;
};

// One weight to multiply by, and what to make of the sums.
struct Product {
  std::string weight = {};  // id
  OutputSpec output = {};
  // When not empty the result is written here, and Output::bytes stays empty. Its size must be the
  // result's, or the call fails with INVALID_ARGUMENT BUFFER_SIZE.
  std::span<std::byte> into = {};
};

// One more product on the result: the float output of the step before, quantized per row, times a
// weight.
struct ChainStep {
  std::string weight = {};  // id; its k is the n of the weight before
  Arithmetic arithmetic = Arithmetic::kUnspecified;
  OutputSpec output = {};
};

struct MatMulOptions {
  Arithmetic arithmetic = Arithmetic::kUnspecified;
  std::string device = {};
  std::string kernel = {};
  bool verify = false;
  std::chrono::milliseconds timeout{0};  // 0: the client's
  // A chain: continues on the only product, whose output spec is that of its first step (F32). What
  // comes back is the last step's.
  std::span<const ChainStep> then = {};
};

// What the server did for one output. Of a call that was split by rows: the sum of the parts' compute
// times, padded rows and overflows, the greatest of their queue times and batches.
struct Execution {
  std::string weight = {};
  std::string digest = {};
  int64_t generation = 0;
  std::string device = {};
  std::string kernel = {};
  Overflow overflow = Overflow::kUnspecified;
  int64_t batch_rows = 0;
  int64_t padded_rows = 0;
  int64_t queue_ns = 0;
  int64_t compute_ns = 0;
  bool verified = false;
  int64_t overflow_count = 0;
};

struct Output {
  DataType dtype = DataType::kUnspecified;
  std::vector<int64_t> shape = {};
  std::string bytes = {};                     // empty when Product::into was given
  std::vector<int32_t> indices = {};          // top_k: columns, [rows, top_k]
  std::vector<float> activation_scales = {};  // sa[rows] of a raw-sum reply to float activations
  Execution execution = {};
  int attempts = 1;  // calls it took, retries and the parts of a split call included

  // The elements as T (int8_t, int16_t, int32_t, float; uint16_t for F16 and BF16). Lives as long
  // as this Output stays where it is.
  template <class T>
  std::span<const T> As() const {
    return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
  }
};

// ---- What the server is and would do ----

struct Candidate {
  std::string device = {};
  std::string kernel = {};
  bool eligible = false;
  bool chosen = false;
  std::optional<int64_t> predicted_ns = {};
  std::string reason = {};
};

struct Explanation {
  std::string device = {};
  std::string kernel = {};
  bool runs_inline = false;
  std::string rule = {};
  std::vector<Candidate> candidates = {};
};

struct DeviceInfo {
  std::string id = {};
  std::string kind = {};
  std::string description = {};
  int threads = 0;
  int lanes = 0;
  int64_t memory_bytes = 0;
  int64_t memory_used_bytes = 0;
  std::vector<std::string> features = {};
  std::string state = {};
};

struct KernelInfo {
  std::string name = {};
  std::string device = {};
  bool supported = false;
  bool disabled = false;
  bool quarantined = false;
  std::string reason = {};
  std::optional<double> measured_gops = {};
  std::string layout = {};
  DataType weight = DataType::kUnspecified;  // the weights it multiplies by
  Arithmetic arithmetic = Arithmetic::kUnspecified;
};

struct KernelStatistics {
  std::string device = {};
  std::string kernel = {};
  int64_t executions = 0;
  int64_t rows = 0;
  int64_t ops = 0;
  int64_t compute_ns = 0;
  double gops = 0;
};

struct Statistics {
  std::string version = {};
  int64_t uptime_ns = 0;
  int64_t requests = 0;
  int64_t errors = 0;
  int64_t rows = 0;
  int64_t ops = 0;
  int64_t weights = 0;
  int64_t weight_bytes = 0;
  int64_t packs = 0;
  int64_t in_flight_requests = 0;
  int64_t in_flight_bytes = 0;
  int64_t output_overflows = 0;
  std::vector<KernelStatistics> kernels = {};
};

enum class Health : uint8_t { kUnknown, kServing, kNotServing, kServiceUnknown };
std::string_view NameOf(Health health);

}  // namespace qmatmul::client
