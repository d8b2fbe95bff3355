// The options that say which tensors become FP8 and how: the same words in quantize, plan and trainer.yaml.
#ifndef WSYNC_CLIENT_CLI_RECIPE_OPTIONS_H_
#define WSYNC_CLIENT_CLI_RECIPE_OPTIONS_H_

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "client/cli/usage.h"
#include "kernels/format.h"
#include "server/core/recipe.h"

namespace wsync::cli {

struct RecipeOptions {
  std::string granularity = "block";
  std::string preset = "default";
  std::string scale = "fp32";
  std::vector<std::string> include;
  std::vector<std::string> exclude;
  std::vector<std::string> allow_infinities;
  int first_layers_bf16 = 0;
  int last_layers_bf16 = 0;

  void AddTo(CLI::App& command) {
    command
        .add_option("--granularity", granularity, "what shares one scale: a 128x128 block, an output channel, a tensor")
        ->check(OneOf({"block", "channel", "tensor"}))
        ->capture_default_str();
    command.add_option("--preset", preset, "whose arithmetic is reproduced bit for bit")
        ->check(OneOf({"default", "deepgemm", "nemo", "verl"}))
        ->capture_default_str();
    command.add_option("--scale", scale, "scale format; pow2 for UE8M0 backends")
        ->check(OneOf({"fp32", "pow2"}))
        ->capture_default_str();
    command.add_option("--include", include, "quantize these tensors although the rules say no")
        ->type_name("GLOB")
        ->check(TensorGlob());
    command.add_option("--exclude", exclude, "keep these tensors as they are; wins over --include")
        ->type_name("GLOB")
        ->check(TensorGlob());
    command.add_option("--allow-infinities", allow_infinities, "these may hold infinities, as masks do; weights never")
        ->type_name("GLOB")
        ->check(TensorGlob());
    command.add_option("--first-layers-bf16", first_layers_bf16, "keep the first N layers as they are")
        ->check(WholeNumber(0, INT32_MAX));
    command.add_option("--last-layers-bf16", last_layers_bf16, "keep the last N layers as they are")
        ->check(WholeNumber(0, INT32_MAX));
  }
  RecipeRules Rules() const {  // REQUIRES: parsed, so the names are known ones
    RecipeRules rules;
    rules.granularity = *ParseGranularity(granularity);
    rules.preset = *ParsePreset(preset);
    rules.scale_format = *ParseScaleFormat(scale);
    rules.include = include;
    rules.exclude = exclude;
    rules.allow_infinities = allow_infinities;
    rules.first_layers_bf16 = first_layers_bf16;
    rules.last_layers_bf16 = last_layers_bf16;
    return rules;
  }
};

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_RECIPE_OPTIONS_H_
