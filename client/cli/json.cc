#include "client/cli/json.h"

#include <cstdio>

namespace qmatmul::cli {

Json ToJson(const Failure& failure) {
  Json error = {{"exit_code", failure.exit_code()}, {"message", failure.what()}};
  if (!failure.way_out().empty()) error["way_out"] = failure.way_out();
  if (const auto& status = failure.status()) {
    error["code"] = NameOf(status->code);
    error["reason"] = status->reason;
    error["message"] = status->message;
    error["metadata"] = status->metadata;
    if (status->attempts > 0) error["attempts"] = status->attempts;
    if (status->retry_after.count() > 0) error["retry_after_ms"] = status->retry_after.count();
    for (const auto& field : status->fields)
      error["fields"].push_back({{"field", field.field}, {"description", field.description}});
  }
  return {{"error", error}};
}

Json ToJson(const client::WeightInfo& w) {
  Json copies = Json::array();
  for (const auto& copy : w.copies)
    copies.push_back({{"device", copy.device}, {"layout", copy.layout}, {"bytes", copy.bytes}});
  Json json = {{"id", w.id}, {"dtype", NameOf(w.dtype)},  {"layout", NameOf(w.layout)}, {"k", w.k},
               {"n", w.n},   {"group_size", w.group_size}};
  json["scale_dtype"] = w.scale_count > 0 ? NameOf(w.scale_dtype) : "NONE";
  json["scale_count"] = w.scale_count;
  json["bias_count"] = w.bias_count;
  json["digest"] = w.digest;
  json["generation"] = w.generation;
  json["create_time_ns"] = w.create_time_ns;
  json["copies"] = copies;
  json["absences"] = Json::array();
  for (const auto& absence : w.absences)
    json["absences"].push_back({{"device", absence.device}, {"reason", absence.reason}});
  return json;
}

Json ToJson(const client::Registration& registration) {
  return {{"weight", ToJson(registration.weight)},
          {"already_registered", registration.already_registered},
          {"uploaded_bytes", registration.uploaded_bytes}};
}

Json ToJson(const client::Output& output) {
  const client::Execution& e = output.execution;
  Json json = {{"weight", e.weight}, {"dtype", NameOf(output.dtype)}, {"shape", output.shape}};
  if (!output.activation_scales.empty()) json["activation_scales"] = output.activation_scales;
  json["attempts"] = output.attempts;
  json["execution"] = {{"digest", e.digest},
                       {"generation", e.generation},
                       {"device", e.device},
                       {"kernel", e.kernel},
                       {"overflow", NameOf(e.overflow)},
                       {"overflow_count", e.overflow_count},
                       {"batch_rows", e.batch_rows},
                       {"padded_rows", e.padded_rows},
                       {"queue_ns", e.queue_ns},
                       {"compute_ns", e.compute_ns},
                       {"verified", e.verified}};
  return json;
}

Json ToJson(const client::Explanation& explanation) {
  Json candidates = Json::array();
  for (const auto& c : explanation.candidates) {
    Json candidate = {
        {"device", c.device}, {"kernel", c.kernel}, {"eligible", c.eligible}, {"chosen", c.chosen}};
    candidate["predicted_ns"] = c.predicted_ns ? Json(*c.predicted_ns) : Json();
    candidate["reason"] = c.reason;
    candidates.push_back(candidate);
  }
  return {{"device", explanation.device},
          {"kernel", explanation.kernel},
          {"inline", explanation.runs_inline},
          {"rule", explanation.rule},
          {"candidates", candidates}};
}

void PrintJson(const Json& json) { std::printf("%s\n", json.dump(2).c_str()); }

}  // namespace qmatmul::cli
