// wsync plan: what would be quantized, why the rest would not, and what it costs. Touches no daemon.
#include "server/core/plan.h"

#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/checkpoint/model.h"
#include "client/checkpoint/model_shapes.h"
#include "client/cli/command.h"
#include "client/cli/recipe_options.h"
#include "client/cli/terminal.h"
#include "server/core/layer_schedule.h"
#include "server/core/memory_estimate.h"
#include "server/core/recipe_notes.h"

namespace wsync::cli {
namespace {

struct PlanArguments {
  std::string model;
  std::string shapes;
  RecipeOptions recipe;
  uint64_t bucket_bytes = kDefaultBucketBytes;
  int64_t ring_slots = 3;
  bool device = false;  // what agents take on their GPUs, not of the host's memory
  bool all = false;
  std::string output = "table";
};

struct AgentEstimate {
  const char* agent;
  const char* mode;
  const char* key;  // in JSON
  MemoryEstimate memory;
};

std::vector<AgentEstimate> Estimates(const Plan& plan, const PlanArguments& arguments) {
  const auto source = arguments.device ? EstimateSourceOnGpu : EstimateSource;
  const auto sink = arguments.device ? EstimateSinkOnGpu : EstimateSink;
  const int64_t slots = arguments.ring_slots;
  return {{"wsync-trainer", "full", "trainer_full", source(plan, SourceMode::kFull, slots)},
          {"wsync-trainer", "ring", "trainer_ring", source(plan, SourceMode::kRing, slots)},
          {"wsync-rollout", "staged", "rollout_staged", sink(plan, SinkMode::kStaged, slots)},
          {"wsync-rollout", "in_place", "rollout_in_place", sink(plan, SinkMode::kInPlace, slots)}};
}

struct Group {
  bool fp8 = false;
  int64_t tensors = 0;
  int64_t bytes_before = 0;
  int64_t bytes_after = 0;
  std::string example;
};
using Groups = std::map<std::string_view, Group>;

absl::StatusOr<std::shared_ptr<const Plan>> MakePlan(const PlanArguments& arguments) {
  const auto bucket_bytes = static_cast<int64_t>(arguments.bucket_bytes);
  if (!arguments.model.empty()) {
    const auto checkpoint = Checkpoint::Open(arguments.model);
    if (!checkpoint.ok()) return checkpoint.status();
    for (const std::string& note : (*checkpoint)->notes()) Tell("note", note);
    return PlanOf(**checkpoint, ModelOf(**checkpoint), arguments.recipe.Rules(), bucket_bytes);
  }
  auto known = ModelTensors(arguments.shapes);
  if (!known.ok()) return known.status();
  auto catalog = Catalog::Create(*std::move(known));
  if (!catalog.ok()) return catalog.status();
  return Plan::Create(std::make_shared<Catalog>(*std::move(catalog)), arguments.recipe.Rules(), bucket_bytes);
}

std::vector<int64_t> BytesAfter(const Plan& plan) {
  std::vector<int64_t> bytes(plan.catalog().tensors().size(), 0);
  for (const Piece& piece : plan.pieces()) bytes[piece.tensor] += piece.data_bytes + piece.scale_bytes;
  return bytes;
}

Groups GroupByReason(const Plan& plan) {
  const std::vector<int64_t> after = BytesAfter(plan);
  Groups groups;
  for (size_t i = 0; i < after.size(); ++i) {
    Group& group = groups[plan.recipes()[i].reason];
    if (group.tensors++ == 0) group.example = plan.catalog().tensors()[i].name;
    group.fp8 = plan.recipes()[i].recipe.fp8;
    group.bytes_before += BytesOf(plan.catalog().tensors()[i]);
    group.bytes_after += after[i];
  }
  return groups;
}

std::string ShapeText(const Tensor& tensor) { return absl::StrCat("[", absl::StrJoin(tensor.shape, ", "), "]"); }

void PrintAll(const Plan& plan, bool color) {
  Table table({"TENSOR", "DTYPE", "SHAPE", "BECOMES", "WHY"});
  for (size_t i = 0; i < plan.recipes().size(); ++i) {
    const Tensor& tensor = plan.catalog().tensors()[i];
    const RecipeChoice& choice = plan.recipes()[i];
    table.Add({tensor.name, std::string(DtypeName(tensor.dtype)), ShapeText(tensor),
               choice.recipe.fp8 ? Cell("FP8", Color::kGreen) : Cell("as it is"), std::string(choice.reason)});
  }
  Write(stdout, table.Render(color) + "\n");
}

// What an engine needs that has no room for all of its weights as they come (AttachHeader.layer_window).
struct LayerFacts {
  int64_t layers = 0;
  int64_t largest_bytes = 0;
  int64_t bytes_of_no_layer = 0;
  int64_t least_window = 0;
};

LayerFacts LayerFactsOf(const Plan& plan) {
  const LayerSchedule schedule(plan);
  LayerFacts facts{.largest_bytes = schedule.largest_bytes(), .least_window = schedule.most_open()};
  for (int64_t i = 0; i < schedule.layers(); ++i) {
    schedule.stays(i) ? facts.bytes_of_no_layer += schedule.bytes(i) : ++facts.layers;
  }
  return facts;
}

void PrintLayers(const Plan& plan) {
  const LayerFacts facts = LayerFactsOf(plan);
  if (facts.layers == 0) return;
  Print(stdout,
        "%s layers of up to %s: an engine with layer_window W, %s or more, has memory for W of them and %s of no\n"
        "layer at once, with an agent in mode in_place\n\n",
        FormatCount(facts.layers).c_str(), FormatBytes(facts.largest_bytes).c_str(),
        FormatCount(facts.least_window).c_str(), FormatBytes(facts.bytes_of_no_layer).c_str());
}

void PrintSummary(const Plan& plan, const PlanArguments& arguments, bool color) {
  Table groups({"BECOMES", "WHY", "TENSORS", "BEFORE", "AFTER", "FOR EXAMPLE"});
  for (size_t c = 2; c <= 4; ++c) groups.AlignRight(c);
  for (const bool fp8 : {true, false}) {
    for (const auto& [reason, group] : GroupByReason(plan)) {
      if (group.fp8 != fp8) continue;
      groups.Add({fp8 ? Cell("FP8", Color::kGreen) : Cell("as it is"), std::string(reason), FormatCount(group.tensors),
                  FormatBytes(group.bytes_before), FormatBytes(group.bytes_after), group.example});
    }
  }
  Write(stdout, groups.Render(color));
  Print(stdout, "\n%s, %s quantized: %s -> %s (%.0f%%)\n", Counted(plan.catalog().tensors().size(), "tensor").c_str(),
        FormatCount(plan.quantized_tensors()).c_str(), FormatBytes(plan.source_bytes()).c_str(),
        FormatBytes(plan.payload_bytes()).c_str(),
        100.0 * plan.payload_bytes() / std::max<int64_t>(plan.source_bytes(), 1));
  Print(stdout, "%s of up to %s; on the wire %s with padding and digests\n",
        Counted(plan.buckets().size(), "bucket").c_str(), FormatBytes(plan.max_bucket_bytes()).c_str(),
        FormatBytes(plan.image_bytes()).c_str());
  Print(stdout, "plan %s, catalog %s\n\n", plan.hash().ShortHex().c_str(),
        plan.catalog().fingerprint().ShortHex().c_str());
  PrintLayers(plan);

  Table memory({"AGENT", "MODE", arguments.device ? "TAKES ON ITS GPU" : "TAKES", "OF WHICH"});
  memory.AlignRight(2);
  for (const AgentEstimate& estimate : Estimates(plan, arguments)) {
    const MemoryEstimate& e = estimate.memory;
    memory.Add({estimate.agent, estimate.mode, FormatBytes(e.total),
                absl::StrCat(e.image_bytes > 0 ? "FP8 copy " : "ring ", FormatBytes(e.image_bytes + e.ring_bytes),
                             ", tables ", FormatBytes(e.tables_bytes),
                             arguments.device ? ", CUDA and NCCL " : ", process ", FormatBytes(e.process_bytes))});
  }
  Write(stdout, memory.Render(color));
}

nlohmann::ordered_json MemoryJson(const MemoryEstimate& e) {
  return {{"image_bytes", e.image_bytes},
          {"ring_bytes", e.ring_bytes},
          {"tables_bytes", e.tables_bytes},
          {"process_bytes", e.process_bytes},
          {"total_bytes", e.total}};
}

void PrintJson(const Plan& plan, const PlanArguments& arguments) {
  const std::vector<int64_t> after = BytesAfter(plan);
  nlohmann::ordered_json out = {{"tensors", plan.catalog().tensors().size()},
                                {"quantized_tensors", plan.quantized_tensors()},
                                {"source_bytes", plan.source_bytes()},
                                {"payload_bytes", plan.payload_bytes()},
                                {"wire_bytes", plan.image_bytes()},
                                {"buckets", plan.buckets().size()},
                                {"plan_hash", plan.hash().Hex()},
                                {"catalog_fingerprint", plan.catalog().fingerprint().Hex()}};
  for (const AgentEstimate& estimate : Estimates(plan, arguments)) {
    out["memory"][estimate.key] = MemoryJson(estimate.memory);
  }
  const LayerFacts layers = LayerFactsOf(plan);
  out["layers"] = {{"count", layers.layers},
                   {"largest_bytes", layers.largest_bytes},
                   {"bytes_of_no_layer", layers.bytes_of_no_layer},
                   {"least_window", layers.least_window}};
  for (size_t i = 0; i < after.size(); ++i) {
    const Tensor& tensor = plan.catalog().tensors()[i];
    out["catalog"].push_back({{"name", tensor.name},
                              {"dtype", DtypeName(tensor.dtype)},
                              {"shape", tensor.shape},
                              {"fp8", plan.recipes()[i].recipe.fp8},
                              {"reason", plan.recipes()[i].reason},
                              {"bytes_before", BytesOf(tensor)},
                              {"bytes_after", after[i]}});
  }
  WriteJson(stdout, out.dump(2));
}

ExitCode Run(const PlanArguments& arguments) {
  if (arguments.model.empty() == arguments.shapes.empty()) {
    Print(stderr, "wsync plan: give either --model DIR or --shapes NAME (one of: %s)\n",
          absl::StrJoin(KnownModels(), ", ").c_str());
    return kUsage;
  }
  const auto plan = MakePlan(arguments);
  if (!plan.ok()) return Fail(plan.status());
  for (const std::string& note : RecipeNotes((*plan)->catalog(), (*plan)->rules(), (*plan)->recipes())) {
    Tell("note", note);
  }
  const bool color = UseColor(stdout);
  if (arguments.output == "json") {
    PrintJson(**plan, arguments);
    return kOk;
  }
  if (arguments.all) PrintAll(**plan, color);
  PrintSummary(**plan, arguments, color);
  return kOk;
}

}  // namespace

void AddPlan(CLI::App& app) {
  auto arguments = std::make_shared<PlanArguments>();
  CLI::App* command =
      AddCommand(app, "plan", "Show what would be quantized, why not the rest, and what it costs",
                 "  wsync plan --model Qwen2.5-7B\n"
                 "  wsync plan --shapes qwen3-30b-a3b --bucket-bytes 64MiB     no files needed\n"
                 "  wsync plan --shapes qwen2.5-7b --device                    what it takes on the GPUs\n"
                 "  wsync plan --model ckpt --all --exclude '*.layers.0.*'     every tensor\n",
                 [arguments] { return Run(*arguments); });
  command->add_option("-m,--model", arguments->model, "checkpoint directory, or one .safetensors file");
  command->add_option("--shapes", arguments->shapes, "a known model by name: " + absl::StrJoin(KnownModels(), ", "))
      ->check(KnownModel())
      ->type_name("NAME");
  arguments->recipe.AddTo(*command);
  command->add_option("--bucket-bytes", arguments->bucket_bytes, "wire bytes moved at once, such as 64MiB")
      ->transform(BucketBytes())
      ->type_name("SIZE")
      ->default_str("256MiB");
  command->add_option("--ring-slots", arguments->ring_slots, "buckets in flight in modes ring and in_place")
      ->check(WholeNumber(2, 64))
      ->capture_default_str();
  command->add_flag("--device", arguments->device, "memory that agents take on their GPUs (backend cuda)");
  command->add_flag("--all", arguments->all, "list every tensor");
  command->add_option("-o,--output", arguments->output, "table or json")
      ->check(OneOf({"table", "json"}))
      ->capture_default_str();
}

}  // namespace wsync::cli
