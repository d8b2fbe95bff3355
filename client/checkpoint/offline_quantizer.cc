#include "client/checkpoint/offline_quantizer.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/checkpoint/model.h"
#include "client/checkpoint/piece_loop.h"
#include "client/checkpoint/quantization_config.h"
#include "kernels/quantize.h"
#include "server/core/clock.h"
#include "server/core/plan.h"
#include "server/core/recipe_notes.h"

namespace wsync {
namespace {

// What one thread works on at a time: large enough that the system calls do not show, small enough for the cache.
constexpr int64_t kPieceBytes = int64_t{4} << 20;

// Memory of one worker; grown to the largest piece it meets.
struct Scratch {
  std::vector<std::byte> source;  // only for misaligned files
  std::vector<std::byte> data;
  std::vector<float> scales;
};

absl::Status NonFinite(const TensorView& view, const Recipe& recipe, int64_t index) {
  const Tensor& tensor = view.tensor;
  const int64_t cols = std::max<int64_t>(ViewOf(tensor).cols, 1);
  const NumberKind kind = KindOfNumber(view.data + index * DtypeBytes(tensor.dtype), tensor.dtype);
  const std::string meant = recipe.fp8 || kind == NumberKind::kNan
                                ? ""
                                : absl::StrCat(", or, where it is meant, --allow-infinities '", tensor.name, "'");
  return absl::InvalidArgumentError(
      absl::StrCat("cannot quantize tensor '", tensor.name, "': it has ", std::string(NumberKindName(kind)),
                   " at index ", index, " (row ", index / cols, ", column ", index % cols,
                   "); the checkpoint is damaged or training diverged: use an earlier one", meant));
}

// `source` itself where it is aligned for its dtype, else a copy in `scratch`: old safetensors writers did not pad.
const std::byte* Aligned(const std::byte* source, int64_t bytes, Dtype dtype, std::vector<std::byte>* scratch) {
  if (reinterpret_cast<uintptr_t>(source) % DtypeBytes(dtype) == 0) return source;
  scratch->resize(bytes);
  std::memcpy(scratch->data(), source, bytes);
  return scratch->data();
}

class OfflineQuantizer {
 public:
  OfflineQuantizer(const Model& model, const Plan& plan, CheckpointWriter* writer, const QuantizeOptions& options,
                   int threads)
      : model_(model),
        plan_(plan),
        writer_(writer),
        options_(options),
        threads_(threads),
        scratch_(threads),
        data_output_(plan.catalog().tensors().size()),
        amax_bits_(plan.catalog().tensors().size()) {
    for (size_t i = 0; i < plan.outputs().size(); ++i) {
      if (!plan.outputs()[i].is_scale) data_output_[plan.outputs()[i].tensor] = static_cast<int64_t>(i);
    }
  }

  absl::Status Run() {
    bytes_total_ = plan_.source_bytes() + AbsMaxBytes();
    if (absl::Status status = ForEachPiece(&OfflineQuantizer::MeasurePiece); !status.ok()) return status;
    return ForEachPiece(&OfflineQuantizer::EncodePiece);
  }

 private:
  using Step = absl::Status (OfflineQuantizer::*)(const Piece&, Scratch*);

  absl::Status ForEachPiece(Step step) {
    const auto work = [&](int64_t piece, int worker) {
      if (options_.cancel != nullptr && options_.cancel->load()) {
        return absl::CancelledError("quantization cancelled; nothing was written under the output's name");
      }
      return (this->*step)(plan_.pieces()[piece], &scratch_[worker]);
    };
    const auto tick = [&] {
      if (options_.progress) options_.progress({bytes_done_.load(), bytes_total_, MonotonicNow() - begin_});
    };
    const absl::Status status = RunPieces(threads_, static_cast<int64_t>(plan_.pieces().size()), work, tick);
    tick();
    return status;
  }

  const TensorView& ViewOfPiece(const Piece& piece) const { return model_.tensors[piece.tensor]; }

  static int64_t RowBytes(const Tensor& tensor) { return ViewOf(tensor).cols * DtypeBytes(tensor.dtype); }

  bool NeedsAbsMax(const Recipe& recipe) const { return recipe.fp8 && recipe.granularity == Granularity::kTensor; }

  int64_t AbsMaxBytes() const {
    int64_t bytes = 0;
    for (size_t i = 0; i < plan_.recipes().size(); ++i) {
      if (NeedsAbsMax(plan_.recipes()[i].recipe)) bytes += model_.tensors[i].bytes;
    }
    return bytes;
  }

  // One scale per tensor needs the largest value of all its pieces before the first is encoded.
  absl::Status MeasurePiece(const Piece& piece, Scratch* scratch) {
    if (!NeedsAbsMax(plan_.RecipeOf(piece))) return absl::OkStatus();
    const TensorView& view = ViewOfPiece(piece);
    const int64_t row_bytes = RowBytes(view.tensor);
    const std::byte* source = view.data + piece.row_begin * row_bytes;
    const AbsMaxResult result = AbsMax(Aligned(source, piece.rows * row_bytes, view.tensor.dtype, &scratch->source),
                                       view.tensor.dtype, piece.row_begin, piece.rows, ViewOf(view.tensor).cols);
    if (result.first_nonfinite != kNoIndex) return NonFinite(view, plan_.RecipeOf(piece), result.first_nonfinite);
    // Non-negative floats order as their bits do.
    const auto bits = std::bit_cast<uint32_t>(result.amax);
    std::atomic<uint32_t>& largest = amax_bits_[piece.tensor];
    for (uint32_t seen = largest.load(); seen < bits && !largest.compare_exchange_weak(seen, bits);) {
    }
    Done(source, piece.rows * row_bytes);
    return absl::OkStatus();
  }

  absl::Status EncodePiece(const Piece& piece, Scratch* scratch) {
    const absl::Status status = plan_.RecipeOf(piece).fp8 ? EncodeRows(piece, scratch) : CopyRows(piece, scratch);
    if (!status.ok()) return status;
    const TensorView& view = ViewOfPiece(piece);
    const int64_t row_bytes = RowBytes(view.tensor);
    Done(view.data + piece.row_begin * row_bytes, piece.rows * row_bytes);
    return absl::OkStatus();
  }

  absl::Status EncodeRows(const Piece& piece, Scratch* scratch) {
    const TensorView& view = ViewOfPiece(piece);
    const int64_t row_bytes = RowBytes(view.tensor);
    scratch->data.resize(piece.data_bytes);
    scratch->scales.resize(piece.scale_bytes / sizeof(float));
    EncodeTask task;
    task.source =
        Aligned(view.data + piece.row_begin * row_bytes, piece.rows * row_bytes, view.tensor.dtype, &scratch->source);
    task.dtype = view.tensor.dtype;
    task.row_begin = piece.row_begin;
    task.rows = piece.rows;
    task.cols = ViewOf(view.tensor).cols;
    task.recipe = plan_.RecipeOf(piece);
    task.tensor_amax = std::bit_cast<float>(amax_bits_[piece.tensor].load());
    task.data = scratch->data.data();
    task.scales = piece.scale_bytes > 0 ? reinterpret_cast<std::byte*>(scratch->scales.data()) : nullptr;
    const EncodeResult result = Encode(task);
    if (result.first_nonfinite != kNoIndex) return NonFinite(view, plan_.RecipeOf(piece), result.first_nonfinite);
    const int64_t output = data_output_[piece.tensor];
    if (absl::Status status = writer_->WriteRows(output, piece.row_begin, scratch->data); !status.ok()) return status;
    if (task.scales == nullptr) return absl::OkStatus();
    return writer_->WriteBytes(output + 1, plan_.FirstScaleOf(piece) * static_cast<int64_t>(sizeof(float)),
                               {task.scales, static_cast<size_t>(piece.scale_bytes)});
  }

  // Raw bytes are checked for NaN and infinity like the rest. Rows do not matter to them, and a 1-D tensor is one row
  // of any length, so they go in slices of bounded size.
  absl::Status CopyRows(const Piece& piece, Scratch* scratch) {
    const TensorView& view = ViewOfPiece(piece);
    const int64_t begin = piece.row_begin * RowBytes(view.tensor);
    const int64_t end = begin + piece.rows * RowBytes(view.tensor);
    const int64_t element = DtypeBytes(view.tensor.dtype);
    for (int64_t at = begin; at < end; at += kPieceBytes) {
      const int64_t bytes = std::min(kPieceBytes, end - at);
      scratch->data.resize(bytes);
      EncodeTask task;
      task.source = Aligned(view.data + at, bytes, view.tensor.dtype, &scratch->source);
      task.dtype = view.tensor.dtype;
      task.rows = 1;
      task.cols = bytes / element;
      task.recipe = plan_.RecipeOf(piece);
      task.data = scratch->data.data();
      const EncodeResult result = Encode(task);
      if (result.first_nonfinite != kNoIndex)
        return NonFinite(view, task.recipe, at / element + result.first_nonfinite);
      absl::Status status = writer_->WriteBytes(data_output_[piece.tensor], at, scratch->data);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  void Done(const std::byte* source, int64_t bytes) {
    ReleaseMappedPages(source, bytes);
    bytes_done_.fetch_add(bytes, std::memory_order_relaxed);
  }

  const Model& model_;
  const Plan& plan_;
  CheckpointWriter* const writer_;
  const QuantizeOptions& options_;
  const int threads_;
  const absl::Time begin_ = MonotonicNow();
  std::vector<Scratch> scratch_;                  // per worker
  std::vector<int64_t> data_output_;              // per tensor: index of its data in the outputs; its scales come next
  std::vector<std::atomic<uint32_t>> amax_bits_;  // per tensor
  std::atomic<int64_t> bytes_done_{0};
  int64_t bytes_total_ = 0;
};

std::vector<WrittenTensor> WrittenTensors(const Model& model, const Plan& plan) {
  std::vector<WrittenTensor> written;
  written.reserve(plan.outputs().size());
  for (const Output& output : plan.outputs()) {
    const bool encoded = plan.recipes()[output.tensor].recipe.fp8;
    written.push_back(
        {{output.name, output.dtype, output.shape}, encoded, encoded ? nullptr : model.tensors[output.tensor].data});
  }
  return written;
}

std::vector<Tensor> TensorsOf(const std::vector<WrittenTensor>& written) {
  std::vector<Tensor> tensors;
  tensors.reserve(written.size());
  for (const WrittenTensor& w : written) tensors.push_back(w.tensor);
  return tensors;
}

std::vector<std::string> NotesOf(const Checkpoint& checkpoint, const Plan& plan) {
  std::vector<std::string> notes = RecipeNotes(plan.catalog(), plan.rules(), plan.recipes());
  notes.insert(notes.end(), checkpoint.notes().begin(), checkpoint.notes().end());
  if (!checkpoint.config().has_value()) {
    notes.push_back("the source has no config.json: the one written holds the quantization_config only");
  }
  return notes;
}

int ThreadCount(int asked) {
  return asked > 0 ? asked : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

absl::StatusOr<QuantizeReport> QuantizeCheckpoint(const Checkpoint& checkpoint, const std::string& out_dir,
                                                  const QuantizeOptions& options) {
  const absl::Time begin = MonotonicNow();
  const Model model = ModelOf(checkpoint);
  const auto plan = PlanOf(checkpoint, model, options.rules, kPieceBytes);
  if (!plan.ok()) return plan.status();
  const std::vector<WrittenTensor> written = WrittenTensors(model, **plan);
  auto writer = CheckpointWriter::Create(
      out_dir, TensorsOf(written),
      {.max_shard_bytes = options.max_shard_bytes,
       .config = WrittenConfig(checkpoint.config(), options.rules.granularity, options.rules.scale_format, written),
       .copy_from = checkpoint.directory(),
       .source = checkpoint.path(),
       .overwrite = options.overwrite});
  if (!writer.ok()) return writer.status();
  OfflineQuantizer quantizer(model, **plan, writer->get(), options, ThreadCount(options.threads));
  const absl::Status quantized = quantizer.Run();
  // First: zeros where bytes were are no error of their own, or the wrong one.
  if (absl::Status status = checkpoint.Intact(); !status.ok()) return status;
  if (!quantized.ok()) return quantized;
  if (absl::Status status = (*writer)->Finish(); !status.ok()) return status;
  QuantizeReport report;
  report.tensors = static_cast<int64_t>(checkpoint.tensors().size());
  report.quantized_tensors = (*plan)->quantized_tensors();
  report.bytes_in = checkpoint.total_bytes();
  report.bytes_out = (*writer)->total_bytes();
  report.elapsed = MonotonicNow() - begin;
  report.shards = (*writer)->shard_names();
  report.notes = NotesOf(checkpoint, **plan);
  report.notes.insert(report.notes.end(), (*writer)->notes().begin(), (*writer)->notes().end());
  return report;
}

}  // namespace wsync
