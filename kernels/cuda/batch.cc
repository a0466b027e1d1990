#include "kernels/cuda/batch.h"

#include <algorithm>
#include <cassert>
#include <cstdio>
#include <cstring>
#include <string>

#include "kernels/top_k.h"

namespace qmatmul::cuda {
namespace {

// Products of few rows are short, and their shapes come again; those of many are not, and do not.
constexpr int64_t kGraphRowsMax = 8;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Places things one after the other.
struct Cursor {
  int64_t at = 0;
  int64_t Take(int64_t bytes) {
    const int64_t place = at;
    at += RoundUp(bytes, 256);
    return place;
  }
};

int64_t ElementBytes(DataType dtype) { return BitsOf(dtype) / 8; }

// Bytes [offset, offset + count) of pieces that split anywhere.
void CopyBytes(std::span<const ByteSpan> spans, int64_t offset, int64_t count, std::byte* out) {
  size_t i = 0;
  auto skip = static_cast<size_t>(offset), left = static_cast<size_t>(count);
  while (left > 0) {
    if (skip >= spans[i].bytes) {
      skip -= spans[i++].bytes;
      continue;
    }
    const size_t take = std::min(spans[i].bytes - skip, left);
    std::memcpy(out, spans[i++].data + skip, take);
    out += take;
    left -= take;
    skip = 0;
  }
}

}  // namespace

Batch::Batch(const Work& work, std::span<const StepKernels> kernels, Gpu* gpu, Lane* lane,
             double* launches_ns)
    : work_(work), kernels_(kernels), gpu_(gpu), lane_(lane), launches_ns_(launches_ns) {
  MakeForms();
}

const CudaPackedWeight& Batch::WeightOf(size_t step, size_t w) const {
  return static_cast<const CudaPackedWeight&>(*work_.steps[step].weights[w]);
}

bool Batch::ChecksWanted(size_t w) const {
  return std::any_of(work_.segments.begin(), work_.segments.end(),
                     [w](const RowSegment& s) { return !s.outputs[w].row_checks.empty(); });
}

Batch::Form Batch::FormOf(size_t step, const CudaPackedWeight& weight) const {
  const WeightArgs& w = weight.args();
  if (work_.steps[step].arithmetic == Arithmetic::kW8A32)
    return {w.k, w.k, RoundUp(int64_t{w.k} * 4, 16), true, 0, 0};
  return {w.group_k, w.group_pad, int64_t{w.groups} * w.group_pad, false, 0, 0};
}

void Batch::MakeForms() {
  steps_.resize(work_.steps.size());
  for (size_t s = 0; s < steps_.size(); ++s) {
    Step& step = steps_[s];
    step.products.resize(work_.steps[s].weights.size());
    for (size_t w = 0; w < step.products.size(); ++w) {
      const Form form = FormOf(s, WeightOf(s, w));
      const auto same = [&form](const Form& f) {
        return f.group_k == form.group_k && f.group_pad == form.group_pad;
      };
      const auto at = std::find_if(step.forms.begin(), step.forms.end(), same);
      step.products[w].form = static_cast<size_t>(at - step.forms.begin());
      if (at == step.forms.end()) step.forms.push_back(form);
      // The widest of the segments' types: rows of all lie at places of their own.
      Product& product = step.products[w];
      product.result_bytes = IsLast(s) ? 1 : 4;
      for (const RowSegment& segment : work_.segments)
        if (IsLast(s))
          product.result_bytes =
              std::max(product.result_bytes, ElementBytes(segment.outputs[w].epilogue.dtype));
      product.result_bytes *= WeightOf(s, w).args().n;
    }
  }
}

int64_t Batch::row_bytes() const {
  int64_t bytes = sizeof(RowSource) + 8;
  for (const RowSegment& segment : work_.segments)
    bytes = std::max(bytes, segment.activations->k * ElementBytes(segment.activations->dtype));
  for (const Step& step : steps_) {
    for (const Form& form : step.forms) bytes += form.row_bytes + int64_t{sizeof(RowState)};
    for (const Product& product : step.products) bytes += product.result_bytes + 16;
  }
  return bytes;
}

void Batch::PlaceUploads() {
  Cursor cursor;
  sources_ = cursor.Take(rows_ * int64_t{sizeof(RowSource)});
  for (size_t s = 0; s < steps_.size(); ++s)
    for (Product& product : steps_[s].products)
      product.outputs =
          cursor.Take(static_cast<int64_t>(parts_.size()) * int64_t{sizeof(DeviceOutput)});
  for (size_t w = 0; w < steps_.back().products.size(); ++w) {
    Product& product = steps_.back().products[w];
    product.check_vector =
        ChecksWanted(w) ? cursor.Take(int64_t{WeightOf(steps_.size() - 1, w).args().n} * 4) : 0;
  }
  activations_ = cursor.at;
  part_bytes_.clear();
  for (const TilePart& part : parts_) {
    const ActivationView& view = *work_.segments[part.segment].activations;
    part_bytes_.push_back(cursor.Take(part.rows * view.k * ElementBytes(view.dtype)));
  }
  down_begin_ = cursor.at;
}

void Batch::PlaceResults() {
  Cursor cursor{down_begin_};
  for (Product& product : steps_.back().products) {
    product.outcomes =
        cursor.Take(static_cast<int64_t>(parts_.size()) * int64_t{sizeof(DeviceOutcome)});
    product.checks = product.check_vector != 0 ? cursor.Take(rows_ * 8) : 0;
  }
  up_end_ = cursor.at;
  for (Step& step : steps_) step.refusals = cursor.Take(rows_ * int64_t{sizeof(RowRefusal)});
  // The scales used are the last step's, of whichever form.
  steps_.back().forms[0].states = cursor.Take(rows_ * int64_t{sizeof(RowState)});
  for (Product& product : steps_.back().products)
    product.results = cursor.Take(rows_ * product.result_bytes);
  end_ = cursor.at;
}

void Batch::PlaceWork() {
  Cursor cursor;
  int64_t intermediates[2] = {0, 0}, operands = 0, floats = 0;
  partial_bytes_ = ticket_bytes_ = 0;
  for (size_t s = 0; s + 1 < steps_.size(); ++s)
    intermediates[s % 2] =
        std::max(intermediates[s % 2], rows_ * steps_[s].products[0].result_bytes);
  const int64_t places[2] = {cursor.Take(intermediates[0]), cursor.Take(intermediates[1])};
  const int64_t first = cursor.at;
  for (size_t s = 0; s < steps_.size(); ++s) {
    Step& step = steps_[s];
    step.intermediate = places[s % 2];
    cursor.at = first;  // steps follow each other: they share
    for (size_t f = 0; f < step.forms.size(); ++f) {
      step.forms[f].operands = cursor.Take(rows_ * step.forms[f].row_bytes);
      if (IsLast(s) && f == 0) continue;  // states go down
      step.forms[f].states = cursor.Take(rows_ * int64_t{sizeof(RowState)});
    }
    operands = std::max(operands, cursor.at);
    for (size_t w = 0; w < step.products.size(); ++w) {
      Product& product = step.products[w];
      product.plan =
          PlanProduct(*kernels_[s][w], WeightOf(s, w).args(), step.forms[product.form].row_bytes,
                      rows_, gpu_->info().multiprocessors);
      floats = std::max(floats, product.plan.float_bytes);
      partial_bytes_ = std::max(partial_bytes_, product.plan.partial_bytes);
      ticket_bytes_ = std::max(ticket_bytes_, product.plan.ticket_bytes);
    }
  }
  cursor.at = operands;
  float_partial_ = cursor.Take(floats);
  work_bytes_ = cursor.at;
}

Error Batch::Reserve() {
  if (Error e = lane_->host.Reserve(end_); !e.ok()) return e;
  if (Error e = lane_->device.Reserve(end_); !e.ok()) return e;
  if (Error e = lane_->work.Reserve(work_bytes_); !e.ok()) return e;
  if (Error e = lane_->ReserveZeroed(&lane_->partial, partial_bytes_); !e.ok()) return e;
  return lane_->ReserveZeroed(&lane_->tickets, ticket_bytes_);
}

RowSource Batch::SourceOf(const ActivationView& view, int64_t row) const {
  RowSource source;
  source.dtype = view.dtype;
  if (work_.steps[0].arithmetic == Arithmetic::kW8A32) {
    source.kind = RowKind::kFloat;
    return source;
  }
  source.zero_point = view.zero_point(row);
  if (!view.scales.empty()) source.scale = view.scale(row);
  if (view.dtype == DataType::kInt8) {
    source.kind = RowKind::kInt8;
  } else if (view.dtype == DataType::kUint8) {
    source.kind = RowKind::kUint8;
  } else if (view.quantization == Quantization::kStatic) {
    source.kind = RowKind::kStatic;
    source.inverse = 1.0f / source.scale;
  } else {
    source.kind = RowKind::kDynamic;
  }
  return source;
}

void Batch::FillRows() {
  auto* sources = Host<RowSource>(sources_);
  for (size_t p = 0; p < parts_.size(); ++p) {
    const TilePart& part = parts_[p];
    const ActivationView& view = *work_.segments[part.segment].activations;
    const int64_t row_bytes = view.k * ElementBytes(view.dtype);
    for (int64_t r = 0; r < part.rows; ++r) {
      RowSource source = SourceOf(view, part.row_begin + r);
      source.part = static_cast<uint32_t>(p);
      source.offset = static_cast<uint64_t>(part_bytes_[p] - activations_ + r * row_bytes);
      sources[part.tile_row + r] = source;
    }
    CopyBytes(view.bytes, part.row_begin * row_bytes, part.rows * row_bytes,
              lane_->host.data() + part_bytes_[p]);
  }
}

DeviceOutput Batch::OutputOf(const Epilogue& epilogue, const WeightArgs& weight) const {
  DeviceOutput output;
  output.inverse_scale = 1.0f / epilogue.scale;
  output.zero_point = epilogue.scaled ? epilogue.zero_point : 0;
  output.dtype = epilogue.dtype;
  output.overflow = epilogue.overflow;
  output.raw = epilogue.raw();
  output.relu = epilogue.activation == Activation::kRelu;
  output.bias = weight.bias != nullptr && !epilogue.skip_bias;
  return output;
}

void Batch::FillOutputs() {
  for (size_t s = 0; s < steps_.size(); ++s) {
    for (size_t w = 0; w < steps_[s].products.size(); ++w) {
      const Product& product = steps_[s].products[w];
      auto* outputs = Host<DeviceOutput>(product.outputs);
      for (size_t p = 0; p < parts_.size(); ++p) {
        const TilePart& part = parts_[p];
        const RowSegment& segment = work_.segments[part.segment];
        const Epilogue& epilogue =
            IsLast(s) ? segment.outputs[w].epilogue : segment.intermediates[s];
        outputs[p] = OutputOf(epilogue, WeightOf(s, w).args());
        outputs[p].first_row = static_cast<int32_t>(part.tile_row);
        auto* results = IsLast(s) ? OnDevice<unsigned char>(product.results)
                                  : InWork<unsigned char>(steps_[s].intermediate);
        outputs[p].data = results + part.tile_row * product.result_bytes;
        if (!IsLast(s)) continue;
        outputs[p].outcome = OnDevice<DeviceOutcome>(product.outcomes) + p;
        Host<DeviceOutcome>(product.outcomes)[p] = {0, ~uint64_t{0}};
      }
      if (!IsLast(s) || product.check_vector == 0) continue;
      const std::span<const uint32_t> r = work_.steps[s].check_vectors[w];
      std::memcpy(Host<uint32_t>(product.check_vector), r.data(), r.size() * 4);
      std::fill_n(Host<uint64_t>(product.checks), rows_, uint64_t{0});
    }
  }
}

ProductArgs Batch::ArgsOf(size_t s, size_t w) const {
  const Step& step = steps_[s];
  const Product& product = step.products[w];
  const Form& form = step.forms[product.form];
  ProductArgs args;
  args.weight = WeightOf(s, w).args();
  args.operands = InWork<unsigned char>(form.operands);
  args.operand_bytes = form.row_bytes;
  args.rows = OnDevice<RowSource>(sources_);
  args.states = IsLast(s) && product.form == 0 ? OnDevice<RowState>(form.states)
                                               : InWork<RowState>(form.states);
  args.outputs = OnDevice<DeviceOutput>(product.outputs);
  args.row_count = static_cast<int32_t>(rows_);
  if (product.check_vector != 0) {
    args.check_vector = OnDevice<uint32_t>(product.check_vector);
    args.row_checks = OnDevice<uint64_t>(product.checks);
  }
  args.slices = product.plan.slices;
  args.partial = product.plan.float_bytes > 0 ? InWork<int32_t>(float_partial_)
                                              : reinterpret_cast<int32_t*>(lane_->partial.data());
  args.tickets = reinterpret_cast<uint32_t*>(lane_->tickets.data());
  return args;
}

Error Batch::LaunchOf(size_t s, size_t w, KernelLaunch* launch) const {
  const ProductPlan& plan = steps_[s].products[w].plan;
  const ProductArgs args = ArgsOf(s, w);
  if (plan.id != KernelId::kWgmma8) {
    *launch = KernelLaunch::Of(plan.id, args);
    return {};
  }
  WgmmaArgs wgmma;
  wgmma.product = args;
  Runtime& runtime = *lane_->runtime;
  Error e = runtime.DescribeRows(args.operands, rows_, args.operand_bytes, &wgmma.rows);
  if (e.ok())
    e = runtime.DescribeRows(args.weight.data, args.weight.n, args.weight.row_bytes,
                             &wgmma.columns);
  *launch = KernelLaunch::Of(plan.id, wgmma);
  return e;
}

Error Batch::AddStep(size_t s, std::vector<Operation>* operations) const {
  const Step& step = steps_[s];
  for (size_t f = 0; f < step.forms.size(); ++f) {
    const Form& form = step.forms[f];
    RowsArgs args;
    args.intermediate = s > 0;
    args.source = s > 0 ? InWork<unsigned char>(steps_[s - 1].intermediate)
                        : OnDevice<unsigned char>(activations_);
    args.rows = OnDevice<RowSource>(sources_);
    args.operands = InWork<unsigned char>(form.operands);
    args.states =
        IsLast(s) && f == 0 ? OnDevice<RowState>(form.states) : InWork<RowState>(form.states);
    args.refusals = OnDevice<RowRefusal>(step.refusals);
    args.row_bytes = form.row_bytes;
    args.k = WeightOf(s, 0).args().k;
    args.group_k = form.group_k;
    args.group_pad = form.group_pad;
    args.floats = form.floats;
    KernelLaunch launch = KernelLaunch::Of(KernelId::kRows, args);
    launch.grid_x = static_cast<int>(rows_);
    operations->emplace_back().launch = launch;
  }
  for (size_t w = 0; w < step.products.size(); ++w) {
    const ProductPlan& plan = step.products[w].plan;
    KernelLaunch launch;
    if (Error e = LaunchOf(s, w, &launch); !e.ok()) return e;
    launch.grid_x = plan.grid_x;
    launch.grid_y = plan.grid_y;
    launch.grid_z = plan.grid_z;
    operations->emplace_back().launch = launch;
  }
  return {};
}

Error Batch::Enqueue(bool* replayed) {
  std::vector<Operation> operations;
  operations.push_back(
      {Operation::Kind::kUpload, lane_->device.data(), lane_->host.data(), up_end_, {}});
  for (size_t s = 0; s < steps_.size(); ++s)
    if (Error e = AddStep(s, &operations); !e.ok()) return e;
  operations.push_back({Operation::Kind::kDownload,
                        lane_->host.data() + down_begin_,
                        lane_->device.data() + down_begin_,
                        end_ - down_begin_,
                        {}});
  if (launches_ns_ != nullptr) return EnqueueTimed(operations);
  if (rows_ <= kGraphRowsMax)
    return lane_->graphs.Enqueue(lane_->stream, std::move(operations), replayed);
  return GraphCache::EnqueueAll(lane_->runtime, lane_->stream, operations);
}

// The upload before, the download behind what is timed.
Error Batch::EnqueueTimed(std::span<const Operation> operations) {
  Runtime* const runtime = lane_->runtime;
  const Stream stream = lane_->stream;
  const auto put = [=](std::span<const Operation> part) {
    return GraphCache::EnqueueAll(runtime, stream, part);
  };
  if (Error e = put(operations.first(1)); !e.ok()) return e;
  double ns = 0;
  const auto launches = operations.subspan(1, operations.size() - 2);
  if (Error e = runtime->Time(
          stream, [&] { return put(launches); }, &ns);
      !e.ok())
    return e;
  *launches_ns_ += ns;
  return put(operations.last(1));
}

Fault Batch::Run(std::span<const TilePart> parts, std::vector<int64_t>* refused_rows,
                 RunReport* report) {
  parts_ = parts;
  rows_ = parts.back().tile_row + parts.back().rows;
  PlaceUploads();
  PlaceResults();
  PlaceWork();
  Error error = Reserve();
  bool replayed = false;
  if (error.ok()) {
    FillRows();
    FillOutputs();
    error = Enqueue(&replayed);
  }
  // Whatever was begun ends before the lane's memory may change.
  const Error end = lane_->runtime->Synchronize(lane_->stream);
  if (error.ok() || end.kind == ErrorKind::kLost) error = end;
  if (!error.ok())
    return gpu_->FaultOf(error, "SCRATCH_MEMORY",
                         "the operands and results of " + std::to_string(rows_) +
                             " rows: " + std::to_string(end_ + work_bytes_) + " bytes");
  Settle(refused_rows);
  if (replayed) gpu_->CountGraphRun();
  for (const Step& step : steps_) {
    report->packed_rows += rows_ * static_cast<int64_t>(step.forms.size());
    report->padded_rows += step.products[0].plan.padded_rows - rows_;
  }
  return {};
}

void Batch::Settle(std::vector<int64_t>* refused_rows) {
  const Step& last = steps_.back();
  for (size_t p = 0; p < parts_.size(); ++p) {
    const TilePart& part = parts_[p];
    RowSegment& segment = work_.segments[part.segment];
    SettleRefusals(p, refused_rows);
    const RowState* states = Host<RowState>(last.forms[0].states);
    for (int64_t r = 0; r < part.rows && !segment.scales_used.empty(); ++r)
      segment.scales_used[static_cast<size_t>(part.row_begin + r)] =
          states[part.tile_row + r].scale;
    for (size_t w = 0; w < last.products.size(); ++w) SettleOutput(p, w);
  }
}

// What a row's values were refused for: the request's own first, then the lowest row of any step.
void Batch::SettleRefusals(size_t p, std::vector<int64_t>* refused_rows) {
  const TilePart& part = parts_[p];
  RowSegment& segment = work_.segments[part.segment];
  int64_t& refused_row = (*refused_rows)[part.segment];
  for (size_t s = 0; s < steps_.size(); ++s) {
    const auto* refusals = Host<RowRefusal>(steps_[s].refusals) + part.tile_row;
    for (int64_t r = 0; r < part.rows; ++r) {
      if (refusals[r].column < 0) continue;
      const int64_t row = part.row_begin + r;
      if (s == 0 && refused_row != kOwnInput) {
        refused_row = kOwnInput;
        segment.fault = {FaultKind::kInvalidArgument, "ACTIVATION_RANGE",
                         "activations row " + std::to_string(row) +
                             " holds a value that is not finite or beyond 2^53 in magnitude"};
      }
      if (s == 0 || row >= refused_row) break;
      refused_row = row;
      float value;
      std::memcpy(&value, &refusals[r].bits, 4);
      char text[32];
      std::snprintf(text, sizeof text, "%.9g", static_cast<double>(value));
      segment.fault = {FaultKind::kInvalidArgument, "ACTIVATION_RANGE",
                       "chain: the result of step " + std::to_string(s) + " at [" +
                           std::to_string(row) + ", " + std::to_string(refusals[r].column) +
                           "] is " + text + ", which step " + std::to_string(s + 1) + " of " +
                           std::to_string(steps_.size()) +
                           " cannot take: not within ±2^53; use smaller activations or scales"};
      break;
    }
  }
}

void Batch::SettleOutput(size_t p, size_t w) {
  const TilePart& part = parts_[p];
  const Product& product = steps_.back().products[w];
  SegmentOutput& output = work_.segments[part.segment].outputs[w];
  const DeviceOutcome& seen = Host<DeviceOutcome>(product.outcomes)[p];
  output.outcome.overflow_count += static_cast<int64_t>(seen.overflow_count);
  if (seen.overflow_count > 0) {
    const int64_t row = static_cast<int64_t>(seen.first >> 32) - part.tile_row + part.row_begin;
    if (output.outcome.first_overflow_row < 0 || row < output.outcome.first_overflow_row) {
      output.outcome.first_overflow_row = row;
      output.outcome.first_overflow_column = static_cast<int64_t>(seen.first & 0xffffffff);
    }
  }
  for (int64_t r = 0; r < part.rows && !output.row_checks.empty(); ++r)
    output.row_checks[static_cast<size_t>(part.row_begin + r)] =
        Host<uint64_t>(product.checks)[part.tile_row + r];
  const int64_t n = WeightOf(steps_.size() - 1, w).args().n;
  const int64_t dense = n * ElementBytes(output.epilogue.dtype);
  const std::byte* results =
      Host<std::byte>(product.results) + part.tile_row * product.result_bytes;
  for (int64_t r = 0; r < part.rows; ++r, results += dense) {
    const int64_t row = part.row_begin + r;
    std::byte* to = output.view.data + row * output.view.row_bytes;
    if (output.top_k == 0) std::memcpy(to, results, static_cast<size_t>(dense));
    else
      SelectTopK(results, output.epilogue.dtype, n, output.top_k, to,
                 output.indices + row * output.top_k * 4, &candidates_);
  }
}

}  // namespace qmatmul::cuda
