// Weights on the wire: names, upload specs, descriptions. Declared in wire.h.
#include "server/wire.h"
#include "server/wire_fields.h"

namespace qmatmul {
namespace {

constexpr std::string_view kNamePrefix = "weights/";
constexpr size_t kIdBytesMax = 128;
constexpr char kIdPattern[] = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}";

bool IsAlphanumeric(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

bool IsDigest(std::string_view text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

// What came from outside, fit to stand in a message: short, and without control bytes or broken
// UTF-8.
std::string Quoted(std::string_view text) {
  constexpr size_t kShown = 64;
  std::string quoted = "\"";
  for (const char c : text.substr(0, kShown)) quoted += c >= ' ' && c <= '~' ? c : '?';
  return quoted + (text.size() > kShown ? "…\"" : "\"");
}

Status BadId(std::string_view id, std::string field) {
  const std::string shown = Quoted(id);
  return Invalid("WEIGHT_ID", std::move(field),
                 "weight id " + shown + " (" + std::to_string(id.size()) +
                     " bytes) does not match " + kIdPattern,
                 shown, std::to_string(kIdBytesMax));
}

struct FaultField {
  const char* field;
  int64_t value;
  int64_t limit;
};

// Which field of the spec a fault of CheckSpec is about.
FaultField FieldOf(const WeightSpec& spec, const std::string& reason) {
  if (reason == "K_TOO_LARGE") return {"spec.k", spec.k, kInnerMax};
  if (reason == "N_TOO_LARGE") return {"spec.n", spec.n, kColumnsMax};
  if (reason == "SHAPE" && spec.k < 1) return {"spec.k", spec.k, 1};
  if (reason == "SHAPE") return {"spec.n", spec.n, 1};
  if (reason == "GROUP_SIZE")
    return {"spec.group_size", spec.group_size, spec.dtype == DataType::kInt4 ? spec.k : 0};
  if (reason == "SCALE_COUNT")
    return {"spec.scale_count", spec.scale_count,
            spec.dtype == DataType::kInt4 ? spec.groups() * spec.n : spec.n};
  if (reason == "SCALE_DTYPE")
    return {"spec.scale_dtype", static_cast<int64_t>(spec.scale_dtype), 0};
  if (reason == "BIAS_COUNT") return {"spec.bias_count", spec.bias_count, spec.n};
  return {"spec.dtype", static_cast<int64_t>(spec.dtype), 0};
}

Status ReadSpec(const v1::WeightSpec& message, WeightSpec* spec) {
  if (Status status = ReadDataType(message.dtype(), "spec.dtype", &spec->dtype); !status.ok())
    return status;
  if (Status status = ReadLayout(message.layout(), "spec.layout", &spec->layout); !status.ok())
    return status;
  if (message.scale_dtype() != v1::DATA_TYPE_UNSPECIFIED) {
    Status status = ReadDataType(message.scale_dtype(), "spec.scale_dtype", &spec->scale_dtype);
    if (!status.ok()) return status;
  }
  spec->k = message.k();
  spec->n = message.n();
  spec->group_size = message.group_size();
  spec->scale_count = message.scale_count();
  spec->bias_count = message.bias_count();
  const Fault fault = CheckSpec(*spec);
  if (fault.ok()) return {};
  const FaultField at = FieldOf(*spec, fault.reason);
  return FromFault(fault, at.field)
      .With("value", std::to_string(at.value))
      .With("limit", std::to_string(at.limit));
}

}  // namespace

bool IsWeightId(std::string_view id) {
  if (id.empty() || id.size() > kIdBytesMax || !IsAlphanumeric(id.front())) return false;
  for (const char c : id)
    if (!IsAlphanumeric(c) && c != '.' && c != '_' && c != '-') return false;
  return true;
}

Status ParseWeightName(const std::string& name, const FieldPath& field, std::string_view* id) {
  if (!std::string_view(name).starts_with(kNamePrefix))
    return Invalid("WEIGHT_ID", field,
                   "weight name " + Quoted(name) + " must be \"weights/\" and an id", Quoted(name));
  *id = std::string_view(name).substr(kNamePrefix.size());
  return IsWeightId(*id) ? Status{} : BadId(*id, field);
}

Status ParseRegistration(const v1::WeightSpec& message, Registration* registration) {
  if (!IsWeightId(message.weight_id())) return BadId(message.weight_id(), "spec.weight_id");
  if (Status status = ReadSpec(message, &registration->spec); !status.ok()) return status;
  const std::pair<const char*, const std::string*> digests[] = {
      {"spec.expected_digest", &message.expected_digest()},
      {"spec.replace_digest", &message.replace_digest()}};
  for (const auto& [field, digest] : digests)
    if (!digest->empty() && !IsDigest(*digest))
      return Invalid(
          "DIGEST", field,
          std::string(field) + " " + Quoted(*digest) + " must be 64 lower-case hex characters",
          Quoted(*digest), "64");
  registration->id = message.weight_id();
  registration->expected_digest = message.expected_digest();
  registration->replace = message.replace();
  registration->replace_digest = message.replace_digest();
  return {};
}

Status CheckChunk(size_t bytes) {
  if (bytes <= static_cast<size_t>(kChunkBytesMax)) return {};
  return Invalid("CHUNK_TOO_LARGE", "chunk",
                 "a chunk of " + std::to_string(bytes) + " bytes exceeds " +
                     std::to_string(kChunkBytesMax) + "; send more and smaller ones",
                 std::to_string(bytes), std::to_string(kChunkBytesMax));
}

void DescribeWeight(const Weight& weight, v1::Weight* message) {
  const WeightContent& content = *weight.content;
  const WeightSpec& spec = content.spec;
  message->set_name(std::string(kNamePrefix) + weight.id);
  message->set_dtype(ToWire(spec.dtype));
  message->set_layout(ToWire(spec.layout));
  message->set_k(spec.k);
  message->set_n(spec.n);
  message->set_group_size(spec.group_size);
  message->set_scale_dtype(ToWire(spec.scale_dtype));
  message->set_scale_count(spec.scale_count);
  message->set_bias_count(spec.bias_count);
  message->set_digest(content.digest);
  message->set_generation(content.generation);
  message->set_create_time_ns(weight.create_time_ns);
  for (size_t device = 0; device < content.copies().size(); ++device) {
    const auto& copy = content.copies()[device];
    if (!content.IsOn(device)) {
      v1::WeightAbsence* absence = message->add_absences();
      Absence known = content.AbsenceOn(device);
      absence->set_device(std::move(known.device));
      absence->set_reason(std::move(known.reason));
      continue;
    }
    v1::WeightCopy* described = message->add_copies();
    described->set_device(copy->device());
    described->set_layout(copy->layout());
    described->set_bytes(copy->bytes());
  }
}

}  // namespace qmatmul
