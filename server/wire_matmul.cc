// MatMul and Explain on the wire. Declared in wire.h.
#include <algorithm>

#include "server/wire.h"
#include "server/wire_fields.h"

namespace qmatmul {
namespace {

std::string Num(int64_t value) { return std::to_string(value); }

// Sizes come from outside and are multiplied here; 128 bits hold any product of three that were
// bounded.
using Wide = __int128;

// No protobuf message is larger, whatever the configuration.
constexpr int64_t kMessageBytesMax = INT32_MAX;

// --- Weights and options. ---

Status FindWeights(const google::protobuf::RepeatedPtrField<std::string>& names,
                   const WeightStore& store, WeightPtrs* weights) {
  if (names.empty() || names.size() > kWeightsPerCallMax)
    return Invalid("WEIGHT_COUNT", "weights",
                   Num(names.size()) + " weights; a call takes 1 to " + Num(kWeightsPerCallMax),
                   Num(names.size()), Num(kWeightsPerCallMax));
  weights->reserve(static_cast<size_t>(names.size()));
  for (int i = 0; i < names.size(); ++i) {
    std::string_view id;
    if (Status status = ParseWeightName(names[i], FieldPath("weights", i), &id); !status.ok())
      return status;
    WeightPtr weight = store.Find(id);
    if (weight == nullptr) return WeightUnknown(id);
    weights->push_back(std::move(weight));
  }
  const int64_t k = weights->front()->content->spec.k;
  for (int i = 1; i < names.size(); ++i) {
    const int64_t other = (*weights)[static_cast<size_t>(i)]->content->spec.k;
    if (other != k)
      return Invalid("K_MISMATCH", FieldPath("weights", i),
                     names[i] + " has k = " + Num(other) + ", " + names[0] + " has k = " + Num(k) +
                         "; they must agree",
                     Num(other), Num(k));
  }
  return {};
}

Status ReadOptions(const v1::MatMulOptions& options, bool integer_activations,
                   Arithmetic* arithmetic) {
  switch (options.arithmetic()) {
    case v1::ARITHMETIC_UNSPECIFIED:
      if (!integer_activations)
        return Invalid(
            "ARITHMETIC_MISSING", "options.arithmetic",
            "float activations need options.arithmetic: W8A8 or W8A32; it is never guessed");
      *arithmetic = Arithmetic::kW8A8;
      break;
    case v1::ARITHMETIC_W8A8: *arithmetic = Arithmetic::kW8A8; break;
    case v1::ARITHMETIC_W8A32:
      if (integer_activations)
        return Invalid("QUANTIZATION_SPEC", "options.arithmetic", "W8A32 needs float activations");
      *arithmetic = Arithmetic::kW8A32;
      break;
    default:
      return Invalid(
          "ENUM_UNKNOWN", "options.arithmetic",
          "options.arithmetic = " + Num(options.arithmetic()) + " is no value of Arithmetic",
          Num(options.arithmetic()));
  }
  if (options.verify())
    return Unimplemented("VERIFY_UNIMPLEMENTED", "options.verify", "options.verify");
  return {};
}

// --- Activations. ---

Status ReadActivationType(v1::DataType value, const FieldPath& field, DataType* dtype) {
  if (Status status = ReadDataType(value, field, dtype); !status.ok()) return status;
  if (*dtype == DataType::kInt8 || *dtype == DataType::kUint8 || IsFloat(*dtype)) return {};
  return Invalid(
      "DTYPE", field,
      "activations are INT8, UINT8, F32, F16 or BF16, not " + std::string(NameOf(*dtype)),
      std::string(NameOf(*dtype)));
}

Status ReadShape(const v1::ActivationTensor& message, ActivationView* view) {
  if (message.shape_size() != 2)
    return Invalid("SHAPE", "activations.shape",
                   "a shape of " + Num(message.shape_size()) + " numbers; it must be [M, K]",
                   Num(message.shape_size()), "2");
  const int64_t m = message.shape(0);
  const int64_t k = message.shape(1);
  if (m < 0 || k < 1)
    return Invalid("SHAPE", "activations.shape",
                   "shape [" + Num(m) + ", " + Num(k) + "]: M must be at least 0 and K at least 1",
                   Num(m < 0 ? m : k), m < 0 ? "0" : "1");
  view->rows = m;
  view->k = k;
  return {};
}

int64_t BytesOf(std::span<const ByteSpan> pieces) {
  int64_t bytes = 0;
  for (const ByteSpan& piece : pieces) bytes += static_cast<int64_t>(piece.bytes);
  return bytes;
}

Status CheckPayload(const Pieces& payload, std::span<const WeightPtr> weights,
                    const ActivationView& view) {
  const int64_t k = weights.front()->content->spec.k;
  if (view.k != k)
    return Invalid("K_MISMATCH", "activations.shape",
                   "activations have K = " + Num(view.k) + ", the weights have k = " + Num(k),
                   Num(view.k), Num(k));
  const int64_t row_bytes = k * BitsOf(view.dtype) / 8;
  const int64_t bytes = BytesOf(payload);
  if (static_cast<Wide>(view.rows) * row_bytes == bytes) return {};
  return Invalid("BYTES_MISMATCH", "activations.data",
                 Num(bytes) + " bytes are not [" + Num(view.rows) + ", " + Num(k) + "] of " +
                     std::string(NameOf(view.dtype)) + ": a row takes " + Num(row_bytes),
                 Num(bytes), Num(row_bytes) + " * " + Num(view.rows));
}

Status QuantizationSpec(std::string message) {
  return Invalid("QUANTIZATION_SPEC", "activations.quantization", std::move(message));
}

Status CheckQuantization(const v1::ActivationTensor& message, bool integer, Arithmetic arithmetic) {
  const bool fixed = message.has_static_scales();
  const bool dynamic = message.has_dynamic();
  if (arithmetic == Arithmetic::kW8A32 && (fixed || dynamic || message.zero_points_size() > 0))
    return QuantizationSpec(
        "W8A32 multiplies the float activations themselves: no scales, dynamic or zero points");
  if (integer && dynamic)
    return QuantizationSpec("integer activations are quantized already: no dynamic");
  if (!integer && arithmetic == Arithmetic::kW8A8 && !fixed && !dynamic)
    return QuantizationSpec("W8A8 with float activations needs static_scales or dynamic");
  if (dynamic && message.zero_points_size() > 0)
    return QuantizationSpec("dynamic quantization takes no zero points");
  return {};
}

Status CountMismatch(std::string reason, std::string field, int64_t count, int64_t rows) {
  return Invalid(
      std::move(reason), std::move(field),
      Num(count) + " of them; one for the tensor or one per row (M = " + Num(rows) + ") is wanted",
      Num(count), Num(rows));
}

Status ReadActivationScales(const v1::ActivationTensor& message, MatMulBuffers* buffers,
                            ActivationView* view) {
  const FieldPath kField("activations.static_scales.scales");
  if (Status status = ReadScales(message.static_scales().scales(), kField, &buffers->scales);
      !status.ok())
    return status;
  const auto count = static_cast<int64_t>(buffers->scales.size());
  if (count != 1 && count != view->rows)
    return CountMismatch("SCALE_COUNT", kField, count, view->rows);
  for (size_t i = 0; i < buffers->scales.size(); ++i) {
    const float scale = buffers->scales[i];
    if (!ScaleInRange(scale) || scale == 0.0f)
      return Invalid("SCALE_RANGE", kField.Of(".data"),
                     "activation scale " + std::to_string(i) + " is " + std::to_string(scale) +
                         "; it must be finite and 2^-47 <= |s| <= 2^47",
                     std::to_string(scale), "2^-47 ... 2^47");
  }
  view->quantization = Quantization::kStatic;
  view->scales = buffers->scales;
  return {};
}

Status ReadZeroPoints(const v1::ActivationTensor& message, MatMulBuffers* buffers,
                      ActivationView* view) {
  const int64_t count = message.zero_points_size();
  if (count > 1 && count != view->rows)
    return CountMismatch("ZERO_POINT_COUNT", "activations.zero_points", count, view->rows);
  const bool is_unsigned = view->dtype == DataType::kUint8;
  const int32_t low = is_unsigned ? 0 : -128;
  const int32_t high = is_unsigned ? 255 : 127;
  for (int i = 0; i < message.zero_points_size(); ++i) {
    const int32_t zero_point = message.zero_points(i);
    if (zero_point < low || zero_point > high)
      return Invalid(
          "ZERO_POINT_RANGE", FieldPath("activations.zero_points", i),
          "zero point " + Num(zero_point) + " is outside " + Num(low) + " ... " + Num(high),
          Num(zero_point), Num(low) + " ... " + Num(high));
  }
  buffers->zero_points.assign(message.zero_points().begin(), message.zero_points().end());
  view->zero_points = buffers->zero_points;
  return {};
}

// An int32 sum could overflow when one operand reaches 255 (docs/numerics.md §1).
Status CheckInnerDimension(const ActivationView& view) {
  const auto& z = view.zero_points;
  const bool wide = view.dtype == DataType::kUint8 ||
                    std::any_of(z.begin(), z.end(), [](int32_t v) { return v != 0; });
  if (!wide || view.k <= kInnerMaxWide) return {};
  return Invalid(
      "K_TOO_LARGE", "activations.shape",
      "k = " + Num(view.k) + " exceeds " + Num(kInnerMaxWide) +
          ", the limit with UINT8 activations or a zero point: an int32 sum could overflow",
      Num(view.k), Num(kInnerMaxWide));
}

Status ReadActivations(const v1::ActivationTensor& message, std::span<const WeightPtr> weights,
                       Arithmetic arithmetic, MatMulBuffers* buffers, ActivationView* view) {
  if (Status s = ReadShape(message, view); !s.ok()) return s;
  if (Status s = CheckPayload(buffers->payload, weights, *view); !s.ok()) return s;
  if (Status s = CheckQuantization(message, !IsFloat(view->dtype), arithmetic); !s.ok()) return s;
  if (message.has_static_scales()) {
    if (Status s = ReadActivationScales(message, buffers, view); !s.ok()) return s;
  }
  if (message.has_dynamic()) view->quantization = Quantization::kDynamic;
  if (Status s = ReadZeroPoints(message, buffers, view); !s.ok()) return s;
  if (Status s = CheckInnerDimension(*view); !s.ok()) return s;
  view->bytes = buffers->payload;
  return {};
}

// --- Outputs. ---

Status OutputSpecFault(const FieldPath& field, std::string message) {
  return Invalid("OUTPUT_SPEC", field, std::move(message));
}

Status ReadOutputScale(const v1::OutputSpec& message, const FieldPath& field, Epilogue* epilogue) {
  const bool narrow = epilogue->dtype == DataType::kInt8 || epilogue->dtype == DataType::kInt16;
  if (message.has_scale() && !narrow)
    return OutputSpecFault(field.Of(".scale"), "an output scale is for INT8 and INT16, not " +
                                                   std::string(NameOf(epilogue->dtype)));
  if (message.has_zero_point() && !message.has_scale())
    return OutputSpecFault(field.Of(".zero_point"), "an output zero point needs an output scale");
  if (!message.has_scale()) return {};
  epilogue->scaled = true;
  epilogue->scale = message.scale();
  epilogue->zero_point = message.zero_point();
  if (!ScaleInRange(message.scale()) || message.scale() <= 0.0f)
    return Invalid(
        "SCALE_RANGE", field.Of(".scale"),
        "output scale " + std::to_string(message.scale()) + " is not within 2^-47 ... 2^47",
        std::to_string(message.scale()), "2^-47 ... 2^47");
  const int32_t top = epilogue->dtype == DataType::kInt8 ? 127 : 32767;
  if (epilogue->zero_point < -top - 1 || epilogue->zero_point > top)
    return Invalid("ZERO_POINT_RANGE", field.Of(".zero_point"),
                   "output zero point " + Num(epilogue->zero_point) + " is outside " +
                       Num(-top - 1) + " ... " + Num(top),
                   Num(epilogue->zero_point), Num(-top - 1) + " ... " + Num(top));
  return {};
}

// Raw sums are integers: no float step may be asked of them (docs/numerics.md §3).
Status CheckRawOutput(const WeightSpec& weight, Arithmetic arithmetic, const FieldPath& field,
                      const Epilogue& epilogue) {
  if (!epilogue.raw()) return {};
  if (weight.bias_count > 0 && !epilogue.skip_bias)
    return OutputSpecFault(field.Of(".skip_bias"),
                           "raw sums of a weight with a bias need skip_bias");
  if (epilogue.activation != Activation::kNone)
    return OutputSpecFault(field.Of(".activation"), "raw sums take no activation");
  if (weight.group_wise())
    return OutputSpecFault(field.Of(".dtype"),
                           "a group-wise weight has no raw sums; ask for a float output");
  if (arithmetic == Arithmetic::kW8A32)
    return OutputSpecFault(field.Of(".dtype"),
                           "W8A32 has no raw sums; ask for a float output or give an output scale");
  return {};
}

Status ReadOutput(const v1::OutputSpec& message, const WeightSpec& weight, Arithmetic arithmetic,
                  const FieldPath& field, Epilogue* epilogue) {
  if (Status status = ReadDataType(message.dtype(), field.Of(".dtype"), &epilogue->dtype);
      !status.ok())
    return status;
  const DataType dtype = epilogue->dtype;
  if (dtype != DataType::kInt8 && dtype != DataType::kInt16 && dtype != DataType::kInt32 &&
      !IsFloat(dtype))
    return Invalid(
        "DTYPE", field.Of(".dtype"),
        "outputs are INT32, INT16, INT8, F32, F16 or BF16, not " + std::string(NameOf(dtype)),
        std::string(NameOf(dtype)));
  if (Status s = ReadOverflow(message.overflow(), field.Of(".overflow"), &epilogue->overflow);
      !s.ok())
    return s;
  if (IsFloat(dtype) && epilogue->overflow != Overflow::kSaturate)
    return OutputSpecFault(
        field.Of(".overflow"),
        "overflow rules are for integer outputs; a float one overflows to infinity");
  if (Status s =
          ReadActivation(message.activation(), field.Of(".activation"), &epilogue->activation);
      !s.ok())
    return s;
  if (Status s = ReadOutputScale(message, field, epilogue); !s.ok()) return s;
  epilogue->skip_bias = message.skip_bias();
  if (Status s = CheckRawOutput(weight, arithmetic, field, *epilogue); !s.ok()) return s;
  if (message.top_k() < 0 || message.top_k() > weight.n)
    return Invalid("TOP_K", field.Of(".top_k"),
                   "top_k = " + Num(message.top_k()) + " is outside 0 ... n = " + Num(weight.n),
                   Num(message.top_k()), Num(weight.n));
  return {};
}

Status ReadOutputs(const google::protobuf::RepeatedPtrField<v1::OutputSpec>& messages,
                   Request* request) {
  const auto count = static_cast<int>(request->weights.size());
  if (messages.size() != count)
    return Invalid(
        "OUTPUT_COUNT", "outputs",
        Num(messages.size()) + " outputs for " + Num(count) + " weights; they pair by position",
        Num(messages.size()), Num(count));
  request->outputs.resize(request->weights.size());
  for (int i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    Status status =
        ReadOutput(messages[i], request->weights[at]->content->spec, request->arithmetic,
                   FieldPath("outputs", i), &request->outputs[at].epilogue);
    if (!status.ok()) return status;
    request->outputs[at].top_k = messages[i].top_k();
  }
  return {};
}

// --- Chains. ---

// The first step's output is what the second one takes: floats, all of them.
Status CheckIntermediate(const SegmentOutput& output, const FieldPath& field) {
  if (output.epilogue.dtype != DataType::kF32)
    return OutputSpecFault(field.Of(".dtype"),
                           "a step of a chain that another follows gives F32, not " +
                               std::string(NameOf(output.epilogue.dtype)));
  if (output.top_k > 0)
    return OutputSpecFault(field.Of(".top_k"), "only the last step of a chain takes top_k");
  return {};
}

Status ReadLink(const v1::ChainStep& message, const WeightStore& store, int64_t k, int index,
                ChainLink* link) {
  std::string_view id;
  const FieldPath field("then", index, ".weight");
  if (Status status = ParseWeightName(message.weight(), field, &id); !status.ok()) return status;
  link->weight = store.Find(id);
  if (link->weight == nullptr) return WeightUnknown(id);
  const int64_t own = link->weight->content->spec.k;
  if (own != k)
    return Invalid("K_MISMATCH", field,
                   message.weight() + " has k = " + Num(own) +
                       ", the step before gives n = " + Num(k) + "; they must agree",
                   Num(own), Num(k));
  switch (message.arithmetic()) {
    case v1::ARITHMETIC_W8A8: link->arithmetic = Arithmetic::kW8A8; return {};
    case v1::ARITHMETIC_W8A32: link->arithmetic = Arithmetic::kW8A32; return {};
    case v1::ARITHMETIC_UNSPECIFIED:
      return Invalid("ARITHMETIC_MISSING", FieldPath("then", index, ".arithmetic"),
                     "a step takes floats, so it needs W8A8 or W8A32; it is never guessed");
    default:
      return Invalid("ENUM_UNKNOWN", FieldPath("then", index, ".arithmetic"),
                     Num(message.arithmetic()) + " is no value of Arithmetic",
                     Num(message.arithmetic()));
  }
}

Status ReadChain(const google::protobuf::RepeatedPtrField<v1::ChainStep>& messages,
                 const WeightStore& store, Request* request) {
  if (messages.empty()) return {};
  if (messages.size() >= kChainStepsMax)
    return Invalid("CHAIN_LENGTH", "then",
                   Num(messages.size()) + " steps after the first; a chain has at most " +
                       Num(kChainStepsMax) + " in all",
                   Num(messages.size()), Num(kChainStepsMax - 1));
  if (request->weights.size() != 1)
    return Invalid("WEIGHT_COUNT", "weights",
                   Num(static_cast<int64_t>(request->weights.size())) +
                       " weights; a chain continues on the output of one",
                   Num(static_cast<int64_t>(request->weights.size())), "1");
  SegmentOutput last = request->outputs.front();
  FieldPath field("outputs", 0);
  int64_t k = request->weights.front()->content->spec.n;
  for (int i = 0; i < messages.size(); ++i) {
    if (Status status = CheckIntermediate(last, field); !status.ok()) return status;
    request->intermediates.push_back(last.epilogue);
    ChainLink& link = request->then.emplace_back();
    if (Status status = ReadLink(messages[i], store, k, i, &link); !status.ok()) return status;
    field = FieldPath("then", i, ".output");
    last = {};
    const WeightSpec& spec = link.weight->content->spec;
    Status status = ReadOutput(messages[i].output(), spec, link.arithmetic, field, &last.epilogue);
    if (!status.ok()) return status;
    last.top_k = messages[i].output().top_k();
    k = spec.n;
  }
  request->outputs.front() = last;
  return {};
}

}  // namespace

Status ParseMatMul(const v1::MatMulRequest& envelope, const WeightStore& weights,
                   int64_t reply_bytes_max, MatMulBuffers* buffers, Request* request) {
  ActivationView& view = request->activations;
  const v1::ActivationTensor& activations = envelope.activations();
  if (Status s = FindWeights(envelope.weights(), weights, &request->weights); !s.ok()) return s;
  if (Status s = ReadActivationType(activations.dtype(), "activations.dtype", &view.dtype); !s.ok())
    return s;
  if (Status s = ReadOptions(envelope.options(), !IsFloat(view.dtype), &request->arithmetic);
      !s.ok())
    return s;
  if (Status s =
          ReadActivations(activations, request->weights, request->arithmetic, buffers, &view);
      !s.ok())
    return s;
  if (Status s = ReadOutputs(envelope.outputs(), request); !s.ok()) return s;
  if (Status s = ReadChain(envelope.then(), weights, request); !s.ok()) return s;
  buffers->device = envelope.options().device();
  buffers->kernel = envelope.options().kernel();
  request->device = buffers->device;
  request->kernel = buffers->kernel;
  return MeasureReply(reply_bytes_max, request);
}

Status ParseExplain(const v1::ExplainRequest& message, const WeightStore& weights,
                    ExplainQuestion* question) {
  Status status = FindWeights(message.weights(), weights, &question->weights);
  if (!status.ok()) return status;
  const int64_t rows_max = kMessageBytesMax / question->weights.front()->content->spec.k;
  if (message.rows() < 0 || message.rows() > rows_max)
    return Invalid("SHAPE", "rows",
                   "rows = " + Num(message.rows()) + " must be 0 to " + Num(rows_max) +
                       ", what a request could carry",
                   Num(message.rows()), Num(rows_max));
  DataType dtype;
  if (status = ReadActivationType(message.activations(), "activations", &dtype); !status.ok())
    return status;
  if (status = ReadOptions(message.options(), !IsFloat(dtype), &question->arithmetic); !status.ok())
    return status;
  if (!message.outputs().empty()) {
    if (message.outputs_size() != message.weights_size())
      return Invalid(
          "OUTPUT_COUNT", "outputs",
          Num(message.outputs_size()) + " outputs for " + Num(message.weights_size()) + " weights",
          Num(message.outputs_size()), Num(message.weights_size()));
    for (int i = 0; i < message.outputs_size(); ++i) {
      Epilogue epilogue;
      const WeightSpec& spec = question->weights[static_cast<size_t>(i)]->content->spec;
      status = ReadOutput(message.outputs(i), spec, question->arithmetic, FieldPath("outputs", i),
                          &epilogue);
      if (!status.ok()) return status;
    }
  }
  question->query = {message.rows(), question->weights, question->arithmetic,
                     message.options().device(), message.options().kernel()};
  return {};
}

void DescribePlan(const Plan& plan, v1::ExplainResponse* reply) {
  reply->set_device(plan.device);
  reply->set_kernel(plan.kernel);
  reply->set_inline_(plan.runs_inline);
  reply->set_rule(plan.rule);
  for (const Plan::Candidate& candidate : plan.candidates) {
    v1::Candidate* described = reply->add_candidates();
    described->set_device(candidate.device);
    described->set_kernel(candidate.choice.name);
    described->set_eligible(candidate.choice.eligible);
    described->set_chosen(candidate.choice.chosen);
    if (candidate.choice.predicted_ns) described->set_predicted_ns(*candidate.choice.predicted_ns);
    described->set_reason(candidate.choice.reason);
  }
}

}  // namespace qmatmul
