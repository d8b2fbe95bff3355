// Writes a small BF16 checkpoint and its FP8 forms for loads_in_python.py: make_example <empty directory>.
#include <iostream>

#include "client/checkpoint/offline_quantizer.h"
#include "tests/checkpoint/test_files.h"

namespace wsync {
namespace {

absl::Status MakeSource(const std::string& directory) {
  const std::vector<TestTensor> tensors = {Bf16Tensor("model.embed_tokens.weight", {256, 256}, 1),
                                           Bf16Tensor("model.layers.0.input_layernorm.weight", {256}, 2),
                                           Bf16Tensor("model.layers.0.mlp.down_proj.weight", {256, 384}, 3),
                                           Bf16Tensor("model.layers.0.mlp.gate_proj.weight", {384, 256}, 4),
                                           Bf16Tensor("model.layers.0.mlp.up_proj.weight", {384, 256}, 5),
                                           Bf16Tensor("model.layers.0.post_attention_layernorm.weight", {256}, 6),
                                           Bf16Tensor("model.layers.0.self_attn.k_norm.weight", {128}, 7),
                                           Bf16Tensor("model.layers.0.self_attn.k_proj.weight", {128, 256}, 8),
                                           Bf16Tensor("model.layers.0.self_attn.o_proj.weight", {256, 256}, 9),
                                           Bf16Tensor("model.layers.0.self_attn.q_norm.weight", {128}, 10),
                                           Bf16Tensor("model.layers.0.self_attn.q_proj.weight", {256, 256}, 11),
                                           Bf16Tensor("model.layers.0.self_attn.v_proj.weight", {128, 256}, 12),
                                           Bf16Tensor("model.norm.weight", {256}, 13)};
  std::vector<Tensor> list;
  for (const TestTensor& made : tensors) list.push_back(made.tensor);
  const OrderedJson config = OrderedJson::parse(R"({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
      "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 1, "num_attention_heads": 2,
      "num_key_value_heads": 1, "head_dim": 128, "vocab_size": 256, "tie_word_embeddings": true,
      "rms_norm_eps": 1e-06, "torch_dtype": "bfloat16"})");
  auto writer = CheckpointWriter::Create(directory, list, {.config = config});
  if (!writer.ok()) return writer.status();
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (absl::Status status = (*writer)->Write(i, tensors[i].bytes); !status.ok()) return status;
  }
  return (*writer)->Finish();
}

absl::Status MakeAll(const std::string& directory) {
  if (absl::Status status = MakeSource(directory + "/source"); !status.ok()) return status;
  const auto source = Checkpoint::Open(directory + "/source");
  if (!source.ok()) return source.status();
  for (const Granularity granularity : {Granularity::kBlock, Granularity::kChannel, Granularity::kTensor}) {
    QuantizeOptions options;
    options.rules.granularity = granularity;
    options.max_shard_bytes = 200'000;
    const auto report =
        QuantizeCheckpoint(**source, directory + "/" + std::string(GranularityName(granularity)), options);
    if (!report.ok()) return report.status();
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace wsync

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: make_example <empty directory>\n";
    return 2;
  }
  const absl::Status status = wsync::MakeAll(argv[1]);
  if (!status.ok()) std::cerr << status << "\n";
  return status.ok() ? 0 : 1;
}
