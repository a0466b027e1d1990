// WeightService. Declared in service.h.
#include "qmatmul/v1/qmatmul.grpc.pb.h"
#include "server/log.h"
#include "server/service.h"
#include "server/unary.h"
#include "server/wire.h"
#include "server/wire_fields.h"

namespace qmatmul {
namespace {

constexpr int32_t kPageSizeDefault = 100;
constexpr int32_t kPageSizeMax = 1000;

// One upload. Messages are read by gRPC's threads and worked on by the loader, one at a time: the
// next is asked for when the last has been packed, so that a client is slowed down to the speed of
// packing. Deletes itself when gRPC is done with the call.
class UploadCall final : public grpc::ServerReadReactor<v1::RegisterWeightRequest> {
 public:
  UploadCall(ServiceContext& context, const grpc::CallbackServerContext& rpc,
             v1::RegisterWeightResponse* reply)
      : context_(context),
        count_(context.calls),
        upload_count_(context.uploads),
        rpc_(rpc),
        reply_(reply) {
    if (context_.uploads.load(std::memory_order_relaxed) <= context_.uploads_max) {
      StartRead(&message_);
      return;
    }
    const std::string limit = std::to_string(context_.uploads_max);
    Status status =
        Status{Code::kUnavailable, "UPLOADS_FULL", limit + " uploads are under way"}.With("limit",
                                                                                          limit);
    status.retry_after_ns = 100'000'000;
    Finish(ToGrpc(context_, status));
  }

  void OnReadDone(bool ok) override {
    if (context_.loader.Post([this, ok] { Step(ok); })) return;
    Status status{Code::kUnavailable, "DRAINING", "the server is shutting down; try another"};
    status.retry_after_ns = 1'000'000'000;
    Finish(ToGrpc(context_, status));
  }
  void OnDone() override { delete this; }

 private:
  void Step(bool has_message) {
    const Status status = has_message ? TakeMessage() : TakeEnd();
    if (has_message && status.ok()) return StartRead(&message_);
    upload_.reset();  // what was packed for nothing is freed before the client hears of it
    Finish(ToGrpc(context_, status));
  }

  Status TakeMessage() {
    switch (message_.upload_case()) {
      case v1::RegisterWeightRequest::kSpec: {
        if (upload_ != nullptr)
          return Invalid("SPEC_REPEATED", "spec", "the spec comes once, first");
        Registration registration;
        if (Status status = ParseRegistration(message_.spec(), &registration); !status.ok())
          return status;
        return context_.engine.weights().StartUpload(std::move(registration), &upload_);
      }
      case v1::RegisterWeightRequest::kChunk: {
        if (upload_ == nullptr) return SpecMissing();
        if (Status status = CheckChunk(message_.chunk().size()); !status.ok()) return status;
        return upload_->Append(std::as_bytes(std::span(message_.chunk())));
      }
      case v1::RegisterWeightRequest::UPLOAD_NOT_SET: break;
    }
    return Invalid("UPLOAD_EMPTY", "upload", "a message holds neither spec nor chunk");
  }

  Status TakeEnd() {
    if (rpc_.IsCancelled())
      return {Code::kCancelled, "CANCELLED", "the client went away during the upload"};
    if (upload_ == nullptr) return SpecMissing();
    RegisterResult result;
    if (Status status = upload_->Finish(&result); !status.ok()) return status;
    DescribeWeight(*result.weight, reply_->mutable_weight());
    reply_->set_already_registered(result.already_registered);
    std::string line = "registered " + reply_->weight().name() + " generation " +
                       std::to_string(result.weight->content->generation) + " digest " +
                       result.weight->content->digest +
                       (result.already_registered ? " (known)" : "");
    for (const v1::WeightAbsence& absence : reply_->weight().absences())
      line += "; not on " + absence.device() + ": " + absence.reason();
    Log(LogLevel::kInfo, line);
    return {};
  }

  static Status SpecMissing() {
    return Invalid("SPEC_MISSING", "spec", "an upload begins with its spec");
  }

  ServiceContext& context_;
  CallCount count_;
  CallCount upload_count_;
  const grpc::CallbackServerContext& rpc_;
  v1::RegisterWeightResponse* const reply_;
  v1::RegisterWeightRequest message_;
  std::unique_ptr<WeightUpload> upload_;
};

class WeightService final : public v1::WeightService::CallbackService {
 public:
  explicit WeightService(ServiceContext& context)
      : context_(context), store_(context.engine.weights()) {}

  grpc::ServerReadReactor<v1::RegisterWeightRequest>* RegisterWeight(
      grpc::CallbackServerContext* rpc, v1::RegisterWeightResponse* reply) override {
    return new UploadCall(context_, *rpc, reply);
  }

  grpc::ServerUnaryReactor* GetWeight(grpc::CallbackServerContext*,
                                      const v1::GetWeightRequest* message,
                                      v1::Weight* reply) override {
    return UnaryReply::Make(context_, Get(*message, reply));
  }
  grpc::ServerUnaryReactor* ListWeights(grpc::CallbackServerContext*,
                                        const v1::ListWeightsRequest* message,
                                        v1::ListWeightsResponse* reply) override {
    return UnaryReply::Make(context_, List(*message, reply));
  }
  grpc::ServerUnaryReactor* DeleteWeight(grpc::CallbackServerContext*,
                                         const v1::DeleteWeightRequest* message,
                                         v1::DeleteWeightResponse* reply) override {
    return UnaryReply::Make(context_, Delete(*message, reply));
  }

 private:
  Status Get(const v1::GetWeightRequest& message, v1::Weight* reply) {
    std::string_view id;
    if (Status status = ParseWeightName(message.name(), "name", &id); !status.ok()) return status;
    const WeightPtr weight = store_.Find(id);
    if (weight == nullptr) return WeightUnknown(id);
    DescribeWeight(*weight, reply);
    return {};
  }

  // A page token is the last id of the page before: weights that come and go between pages neither
  // repeat nor hide others.
  Status List(const v1::ListWeightsRequest& message, v1::ListWeightsResponse* reply) {
    const int32_t asked = message.page_size();
    if (asked < 0)
      return Invalid("PAGE_SIZE", "page_size",
                     "page_size = " + std::to_string(asked) + " must not be negative",
                     std::to_string(asked), "0");
    if (!message.page_token().empty() && !IsWeightId(message.page_token()))
      return Invalid("PAGE_TOKEN", "page_token",
                     "this page_token was not given out by ListWeights");
    const auto size =
        static_cast<size_t>(asked == 0 ? kPageSizeDefault : std::min(asked, kPageSizeMax));
    const std::vector<WeightPtr> page = store_.List(message.page_token(), size + 1);
    for (size_t i = 0; i < std::min(size, page.size()); ++i)
      DescribeWeight(*page[i], reply->add_weights());
    if (page.size() > size) reply->set_next_page_token(page[size - 1]->id);
    return {};
  }

  Status Delete(const v1::DeleteWeightRequest& message, v1::DeleteWeightResponse* reply) {
    std::string_view id;
    if (Status status = ParseWeightName(message.name(), "name", &id); !status.ok()) return status;
    int64_t freed_bytes = 0;
    if (Status status = store_.Delete(id, &freed_bytes); !status.ok()) return status;
    reply->set_freed_bytes(freed_bytes);
    Log(LogLevel::kInfo,
        "deleted " + message.name() + ", " + std::to_string(freed_bytes) + " bytes freed");
    return {};
  }

  ServiceContext& context_;
  WeightStore& store_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeWeightService(ServiceContext& context) {
  return std::make_unique<WeightService>(context);
}

}  // namespace qmatmul
