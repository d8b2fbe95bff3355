// Every kind of bad configuration, and what the user reads about it.
#include <gtest/gtest.h>

#include <string>

#include "tests/rpc/config_loading.h"

namespace wsync {
namespace {

TEST(ConfigError, UnknownKeyNamesTheNearestOne) {
  EXPECT_EQ(TrainerProblems("job: a\ntransfr:\n  bucket_bytes: 1MiB\n"),
            "c.yaml:2: unknown key \"transfr\"; did you mean \"transfer\"?");
  EXPECT_EQ(TrainerProblems("transfer:\n  bucket_byte: 1MiB\n"),
            "c.yaml:2: unknown key \"transfer.bucket_byte\"; did you mean \"transfer.bucket_bytes\"?");
  EXPECT_EQ(TrainerProblems("bucket_bytes: 1MiB\n"),
            "c.yaml:1: unknown key \"bucket_bytes\"; did you mean \"transfer.bucket_bytes\"?");
  EXPECT_EQ(TrainerProblems("transfer.bucket_bytes: 1MiB\n"),
            "c.yaml:1: unknown key \"transfer.bucket_bytes\"; write \"bucket_bytes\" below the section it belongs to");
  EXPECT_EQ(TrainerProblems("zebra: 1\n"), "c.yaml:1: unknown key \"zebra\"; `--help` lists all keys");
}

TEST(ConfigError, ValuesOfTheWrongTypeSayWhatWasExpected) {
  EXPECT_EQ(TrainerProblems("job: a\ntransfer:\n  bucket_bytes: 12 apples\n"),
            "c.yaml:3: transfer.bucket_bytes: \"12 apples\" is not a size; expected 64KiB to 8GiB, such as 256MiB");
  EXPECT_EQ(TrainerProblems("coordinator:\n  heartbeat_ms: soon\n"),
            "c.yaml:2: coordinator.heartbeat_ms: \"soon\" is not a duration; expected 20ms to 1min, such as 1s");
  EXPECT_EQ(TrainerProblems("transfer:\n  ring_slots: 1e1\n"),
            "c.yaml:2: transfer.ring_slots: \"1e1\" is not an integer; expected 2 to 64");
  EXPECT_EQ(TrainerProblems("recipe:\n  fp8: yes\n"),
            "c.yaml:2: recipe.fp8: \"yes\" is neither; expected true or false");
}

TEST(ConfigError, ValuesOutOfRangeShowTheRangeInHumanUnits) {
  EXPECT_EQ(TrainerProblems("transfer:\n  bucket_bytes: 12\n"),
            "c.yaml:2: transfer.bucket_bytes: \"12\" is out of range; expected 64KiB to 8GiB, such as 256MiB");
  EXPECT_EQ(
      TrainerProblems("transfer:\n  bucket_bytes: 99999999999TiB\n"),
      "c.yaml:2: transfer.bucket_bytes: \"99999999999TiB\" is out of range; expected 64KiB to 8GiB, such as 256MiB");
  EXPECT_EQ(TrainerProblems("coordinator:\n  min_replicas_wait_ms: 11s\n"),
            "c.yaml:2: coordinator.min_replicas_wait_ms: \"11s\" is out of range; expected 0s to 10s, such as 5s");
  EXPECT_EQ(RolloutProblems("rank: -1\n"), "c.yaml:1: rank: \"-1\" is out of range; expected 0 to 4095");
  EXPECT_EQ(RolloutProblems("rank: 4294967296\n"),
            "c.yaml:1: rank: \"4294967296\" is out of range; expected 0 to 4095");
}

TEST(ConfigError, ChoicesAreListed) {
  EXPECT_EQ(TrainerProblems("coordinator:\n  policy: quorom\n"),
            "c.yaml:2: coordinator.policy: \"quorom\" is unknown; expected one of: all, quorum; did you mean "
            "\"quorum\"?");
  EXPECT_EQ(TrainerProblems("log:\n  format: xml\n"),
            "c.yaml:2: log.format: \"xml\" is unknown; expected one of: text, json");
}

TEST(ConfigError, DuplicateKeysAreRefused) {
  EXPECT_EQ(TrainerProblems("job: a\nlog:\n  level: info\njob: b\n"),
            "c.yaml:4: job: given twice, first on line 1; keep one");
  EXPECT_EQ(TrainerProblems("log:\n  level: info\n  level: info\n"),
            "c.yaml:3: log.level: given twice, first on line 2; keep one");
  EXPECT_EQ(TrainerProblems("log:\n  level: info\nlog:\n  format: json\n"),
            "c.yaml:3: log: given twice, first on line 1; keep one");
}

TEST(ConfigError, FormsThatDoNotFitAreNamed) {
  EXPECT_EQ(TrainerProblems("job: [a]\n"), "c.yaml:1: job: a list where a single value is expected");
  EXPECT_EQ(TrainerProblems("job:\n  a: b\n"), "c.yaml:1: job: a section where a single value is expected");
  EXPECT_EQ(TrainerProblems("job:\n"),
            "c.yaml:1: job: nothing where a single value is expected; write \"\" for empty text, or remove the key");
  EXPECT_EQ(TrainerProblems("transfer: 5\n"),
            "c.yaml:1: transfer: a single value is not a section; expected keys below it, such as \"backend:\"");
  EXPECT_EQ(TrainerProblems("recipe:\n  include: a\n"),
            "c.yaml:2: recipe.include: a single value where a list is expected, such as [\"a\", \"b\"]");
  EXPECT_EQ(TrainerProblems("recipe:\n  include:\n    - a\n    - [b]\n"),
            "c.yaml:4: recipe.include: a list where a list entry of text is expected");
  EXPECT_EQ(TrainerProblems("recipe:\n  include: [\"\"]\n"),
            "c.yaml:2: recipe.include: has an empty entry; expected a list of text");
  EXPECT_EQ(TrainerProblems("- job\n"), "c.yaml:1: a list where keys are expected, such as \"job: default\"");
  EXPECT_EQ(TrainerProblems("[a]: b\n"), "c.yaml:1: a key must be text, this one is a list");
  EXPECT_EQ(TrainerProblems("job: a\n---\njob: b\n"), "c.yaml:3: a second YAML document begins here; expected one");
}

TEST(ConfigError, RequiredTextMustNotBeEmpty) {
  EXPECT_EQ(TrainerProblems("log:\n  level: info\njob: \"\"\n"),
            "c.yaml:3: job: must not be empty; expected name of the training job; every member must say the same");
}

TEST(ConfigError, SyntaxErrorsHaveALine) {
  EXPECT_EQ(TrainerProblems("job: a\nlog: {level: info\ntransfer: x\n").rfind("c.yaml:", 0), 0u);
  EXPECT_EQ(TrainerProblems("job: a\n\tlog: b\n").rfind("c.yaml:2: not valid YAML: ", 0), 0u)
      << TrainerProblems("job: a\n\tlog: b\n");
  EXPECT_NE(TrainerProblems("job: \"open\nlog:\n").find("not valid YAML: "), std::string::npos);
  EXPECT_NE(TrainerProblems(std::string(20000, '[')).find("not valid YAML: "), std::string::npos);
}

TEST(ConfigError, TextMustBeUtf8) {
  EXPECT_EQ(ProblemsOf<v1::TrainerConfig>({.environment = {{"WSYNC_JOB", "a\xFF"}}}),
            "environment WSYNC_JOB: \"a\\xff\" is not UTF-8; expected UTF-8 text");
}

TEST(ConfigError, UnreadableFilesSayWhy) {
  v1::TrainerConfig config;
  const TempDir dir;
  EXPECT_EQ(LoadConfig({.file = dir.Path("none.yaml")}, &config).status().message(),
            "cannot read config file " + dir.Path("none.yaml") + ": no such file or directory");
  EXPECT_EQ(LoadConfig({.file = dir.path()}, &config).status().message(),
            "cannot read config file " + dir.path() + ": is a directory");
  EXPECT_EQ(LoadConfig({.file = dir.Write("big", std::string(2 << 20, '#'))}, &config).status().message(),
            "config file " + dir.Path("big") + " is larger than 1048576 bytes; is it the right file?");
}

TEST(ConfigError, EnvironmentAndFlagsAreNamedAsSuch) {
  EXPECT_EQ(ProblemsOf<v1::TrainerConfig>({.environment = {{"WSYNC_TRANSFER_RING_SLOTS", "many"}}}),
            "environment WSYNC_TRANSFER_RING_SLOTS: \"many\" is not an integer; expected 2 to 64");
  EXPECT_EQ(ProblemsOf<v1::TrainerConfig>({.flags = {{"transfer.ring_slots", ""}}}),
            "flag --transfer.ring_slots: \"\" is not an integer; expected 2 to 64");
  EXPECT_EQ(ProblemsOf<v1::TrainerConfig>({.flags = {{"job", "a"}, {"job", "b"}}}),
            "flag --job: given 2 times; keep one");
  EXPECT_EQ(ProblemsOf<v1::TrainerConfig>({.flags = {{"transfer.ringslots", "3"}}}),
            "flag --transfer.ringslots: no such key; did you mean --transfer.ring_slots?");
}

TEST(ConfigError, MistypedVariablesNameTheKeyThatWasMeant) {
  EXPECT_EQ(ProblemsOf<v1::TrainerConfig>({.environment = {{"WSYNC_TRANSFER_THREAD", "2"}}}),
            "environment WSYNC_TRANSFER_THREAD: no such key; did you mean WSYNC_TRANSFER_THREADS?");
}

TEST(ConfigError, VariablesOfTheOtherDaemonAndOfStrangersAreLeftAlone) {
  const std::map<std::string, std::string> shared = {{"WSYNC_REPLICA", "r0"},
                                                     {"WSYNC_COORDINATOR_LISTEN", "0.0.0.0:7470"},
                                                     {"WSYNC_TRAINER_PORT", "tcp://10.0.0.1:7470"},
                                                     {"WSYNC_TRAINER_SERVICE_HOST", "10.0.0.1"},
                                                     {"WSYNC_TEST_TORCH", "1"}};
  EXPECT_EQ(ProblemsOf<v1::TrainerConfig>({.environment = shared}), "");
  EXPECT_EQ(ProblemsOf<v1::RolloutConfig>({.environment = shared}), "");
}

TEST(ConfigError, AllProblemsAreReportedAtOnceInTheOrderOfTheFile) {
  const Given given{.yaml = "jbo: a\nlog:\n  level: loud\ntransfer:\n  threads: x\n  what: 1\n",
                    .environment = {{"WSYNC_RECIPE_SCALE", "fp64"}},
                    .flags = {{"local_socket", ""}}};
  EXPECT_EQ(ProblemsOf<v1::TrainerConfig>(given),
            "c.yaml:1: unknown key \"jbo\"; did you mean \"job\"?\n"
            "c.yaml:3: log.level: \"loud\" is unknown; expected one of: trace, debug, info, warn, error\n"
            "c.yaml:5: transfer.threads: \"x\" is not an integer; expected 0 to 1024\n"
            "c.yaml:6: unknown key \"transfer.what\"; `--help` lists all keys\n"
            "environment WSYNC_RECIPE_SCALE: \"fp64\" is unknown; expected one of: fp32, pow2\n"
            "flag --local_socket: local_socket: must not be empty; expected Unix socket the training process connects "
            "to");
}

TEST(ConfigError, BadValuesAreReportedEvenWhereAHigherOriginReplacesThem) {
  EXPECT_EQ(ProblemsOf<v1::TrainerConfig>({.yaml = "transfer:\n  threads: x\n", .flags = {{"transfer.threads", "2"}}}),
            "c.yaml:2: transfer.threads: \"x\" is not an integer; expected 0 to 1024");
}

}  // namespace
}  // namespace wsync
