// Every way to type `wsync` wrongly: exit code 2 and one line with the next thing to type, before anything is started.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/system/system_testing.h"

namespace wsync::cli {
namespace {

using ::testing::HasSubstr;

struct Wrong {
  std::string arguments;
  std::vector<std::string> told;  // parts of the one line
};

const std::vector<Wrong>& Table() {
  static const std::vector<Wrong> table = {
      // commands
      {"staus", {"wsync: there is no command 'staus'; did you mean 'wsync status'?"}},
      {"stat", {"did you mean 'wsync status'?"}},
      {"frobnicate", {"no command 'frobnicate'", "status, verify, publish"}},
      {"help", {"did you mean 'wsync --help'?"}},
      {"help stauts", {"did you mean 'wsync status --help'?"}},
      {"config", {"wsync config needs a command: show"}},
      {"config sho", {"did you mean 'wsync config show'?"}},
      // options
      {"--verison", {"wsync: there is no option '--verison'; did you mean '--version'?"}},
      {"-x", {"wsync: there is no option '-x'; 'wsync --help'"}},
      {"status --outptu json", {"wsync status: there is no option '--outptu'; did you mean '--output'?"}},
      {"status --out=json", {"no option '--out'", "'--output'"}},
      {"verify --frobnicate", {"no option '--frobnicate'", "'wsync verify --help'"}},
      {"config show --rle trainer", {"wsync config show: ", "'--role'"}},
      {"status -o json -o wide", {"--output is given more than once"}},
      // arguments that are missing or too many
      {"quantize", {"wsync quantize: IN is required", "'wsync quantize --help'"}},
      {"quantize in", {"wsync quantize: OUT is required"}},
      {"quantize in out more", {"'more' is one word too many"}},
      {"status --output", {"--output needs a value"}},
      {"publish --model", {"--model needs a value"}},
      {"publish", {"--model is required"}},
      {"export", {"--out is required"}},
      {"plan", {"--model DIR or --shapes NAME"}},
      {"plan --model m --shapes qwen3-8b", {"--model DIR or --shapes NAME"}},
      // values
      {"status -o yaml", {"--output: \"yaml\" is none of table, wide, json"}},
      {"status -o jsn", {"did you mean json?"}},
      {"quantize a b --preset deepgem", {"did you mean deepgemm?"}},
      {"config show --role trianer", {"did you mean trainer?"}},
      {"config show --set job", {"KEY=VALUE"}},
      {"config show --set jobb=1", {"did you mean --job?"}},
      {"plan --shapes qwen3-8", {"\"qwen3-8\"", "did you mean qwen3-8b?"}},
      {"plan --shapes x", {"deepseek-v3", "qwen3-30b-a3b"}},
      {"demo --shapes x", {"wsync demo: --shapes"}},
      {"bench --shapes qwen2.5", {"did you mean qwen2.5-0.5b?"}},
      {"plan --shapes qwen3-8b --bucket-bytes 12apples", {"\"12apples\" is not a size of 64KiB to 8GiB"}},
      {"plan --shapes qwen3-8b --bucket-bytes 1", {"\"1\" is not a size of 64KiB to 8GiB"}},
      {"bench --bucket-bytes apples", {"\"apples\" is not a size"}},
      {"plan --shapes qwen3-8b --ring-slots 1", {"\"1\" is not a whole number 2 to 64"}},
      {"plan --shapes qwen3-8b --first-layers-bf16 -1", {"\"-1\" is not a whole number from 0 on"}},
      {"plan --shapes qwen3-8b --include '*.[ab'", {"--include", "no ']' closes"}},
      {"bench --devices 0,a", {"\"a\" is not a whole number"}},
      {"publish --model m --version abc", {"\"abc\" is not a whole number from 1 on"}},
      {"publish --model m --version 0", {"\"0\" is not a whole number from 1 on"}},
      {"publish --model m --version -3", {"\"-3\" is not a whole number from 1 on"}},
      {"publish --model m -s run.sock", {"\"run.sock\" is not a local socket", "unix:///"}},
      {"export --out o -s /run/x.sock", {"write unix:///run/x.sock"}},
      {"export --out o --timeout soon", {"\"soon\" is not a number of seconds"}},
      {"status --timeout 0", {"\"0\" is not a number of seconds, 0.1 to 3600"}},
      // an address without a port is no matter of DNS
      {"status -c trainer-0", {"\"trainer-0\" has no port; expected host:port"}},
      {"verify -c trainer-0:http", {"port \"http\""}},
      {"status -c unix:///run/wsync/trainer.sock", {"cannot be dialled", "host:port"}},
  };
  return table;
}

class Usage : public System {};

TEST_F(Usage, EveryMistakeExitsWithTwoAndOneLineThatSaysWhatToType) {
  for (const Wrong& wrong : Table()) {
    SCOPED_TRACE("wsync " + wrong.arguments);
    const Run run = Wsync(wrong.arguments);
    EXPECT_EQ(run.exit_code, 2);
    EXPECT_EQ(std::count(run.output.begin(), run.output.end(), '\n'), 1) << run.output;
    for (const std::string& part : wrong.told) EXPECT_THAT(run.output, HasSubstr(part));
  }
}

TEST_F(Usage, NothingAtAllShowsTheHelp) {
  const Run run = Wsync("");
  EXPECT_EQ(run.exit_code, 2);
  EXPECT_THAT(run.output, HasSubstr("Examples:"));
}

// What the command line alone cannot tell is looked at before agents are started, too.
TEST_F(Usage, DemoOfAModelThatIsNotThereStartsNothing) {
  const Run run = Wsync("demo --model /nonexistent");
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_EQ(run.output, "wsync: cannot open '/nonexistent': No such file or directory; check the path\n");
}

}  // namespace
}  // namespace wsync::cli
