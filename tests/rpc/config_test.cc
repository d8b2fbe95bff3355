#include "server/rpc/config.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <string>

#include "tests/rpc/config_loading.h"

namespace wsync {
namespace {

using google::protobuf::util::MessageDifferencer;
using testing::ElementsAre;

const ConfigValue& Find(const std::vector<ConfigValue>& values, const std::string& path) {
  for (const ConfigValue& value : values) {
    if (value.path == path) return value;
  }
  static const ConfigValue missing{"", "no such path", ""};
  return missing;
}

const ConfigField& FindField(const std::vector<ConfigField>& fields, const std::string& path) {
  for (const ConfigField& field : fields) {
    if (field.path == path) return field;
  }
  static const ConfigField missing;
  return missing;
}

TEST(Config, WithoutAnyOriginEveryKeyHasItsDefault) {
  v1::TrainerConfig config;
  const auto values = Load({}, &config);
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_EQ(config.job(), "default");
  EXPECT_EQ(config.transfer().bucket_bytes(), 256 << 20);
  EXPECT_EQ(config.coordinator().heartbeat_timeout_ms(), 3000);
  EXPECT_TRUE(config.recipe().fp8());
  for (const ConfigValue& value : *values) EXPECT_EQ(value.origin, "default") << value.path;
}

TEST(Config, FlagBeatsEnvironmentBeatsFileBeatsDefault) {
  Given given{.yaml = "job: file\ntransfer:\n  ring_slots: 4\n  threads: 4\nlog:\n  level: debug\n",
              .environment = {{"WSYNC_TRANSFER_RING_SLOTS", "5"}, {"WSYNC_TRANSFER_THREADS", "5"}},
              .flags = {{"transfer.threads", "6"}}};
  v1::TrainerConfig config;
  const auto values = Load(given, &config);
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_EQ(config.job(), "file");
  EXPECT_EQ(config.transfer().ring_slots(), 5);
  EXPECT_EQ(config.transfer().threads(), 6);
  EXPECT_EQ(Find(*values, "log.format").origin, "default");
  EXPECT_EQ(Find(*values, "job").origin, "file c.yaml:1");
  EXPECT_EQ(Find(*values, "log.level").origin, "file c.yaml:6");
  EXPECT_EQ(Find(*values, "transfer.ring_slots").origin, "environment WSYNC_TRANSFER_RING_SLOTS");
  EXPECT_EQ(Find(*values, "transfer.threads").origin, "flag --transfer.threads");
}

TEST(Config, ValuesAreShownAsYamlWouldHaveThem) {
  v1::TrainerConfig config;
  const auto values = Load({.yaml = "transfer:\n  bucket_bytes: 1048576\n"
                                    "coordinator:\n  heartbeat_ms: 1500\n"
                                    "recipe:\n  include: [a.b, \"c*, d\"]\n  fp8: false\n"},
                           &config);
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_EQ(Find(*values, "transfer.bucket_bytes").text, "1MiB");
  EXPECT_EQ(Find(*values, "coordinator.heartbeat_ms").text, "1500ms");
  EXPECT_EQ(Find(*values, "recipe.include").text, "[a.b, \"c*, d\"]");
  EXPECT_EQ(Find(*values, "recipe.exclude").text, "[]");
  EXPECT_EQ(Find(*values, "recipe.fp8").text, "false");
  EXPECT_EQ(Find(*values, "log.file").text, "\"\"");
  EXPECT_EQ(Find(*values, "local_socket").text, "unix:///run/wsync/trainer.sock");
}

TEST(Config, ListsComeAsSequencesCommasAndRepeatedFlags) {
  v1::TrainerConfig config;
  ASSERT_TRUE(Load({.yaml = "recipe:\n  include:\n    - a\n    - b\n",
                    .environment = {{"WSYNC_RECIPE_EXCLUDE", "c,d"}},
                    .flags = {{"recipe.modules_to_not_convert", "e"}, {"recipe.modules_to_not_convert", "f,g"}}},
                   &config)
                  .ok());
  EXPECT_THAT(config.recipe().include(), ElementsAre("a", "b"));
  EXPECT_THAT(config.recipe().exclude(), ElementsAre("c", "d"));
  EXPECT_THAT(config.recipe().modules_to_not_convert(), ElementsAre("e", "f", "g"));
}

TEST(Config, AHigherOriginReplacesAListAndAnEmptyOneClearsIt) {
  v1::TrainerConfig config;
  ASSERT_TRUE(Load({.yaml = "recipe:\n  include: [a, b]\n  exclude: [c]\n",
                    .environment = {{"WSYNC_RECIPE_INCLUDE", "d"}},
                    .flags = {{"recipe.exclude", ""}}},
                   &config)
                  .ok());
  EXPECT_THAT(config.recipe().include(), ElementsAre("d"));
  EXPECT_THAT(config.recipe().exclude(), ElementsAre());
}

TEST(Config, EmptyFilesAndSectionsWithAllKeysCommentedOutMeanDefaults) {
  EXPECT_EQ(TrainerProblems("# nothing\n"), "");
  EXPECT_EQ(TrainerProblems("transfer:\n  # bucket_bytes: 1MiB\nlog:\n"), "");
}

TEST(Config, NumbersAreTextWhereTextIsExpected) {
  v1::TrainerConfig config;
  ASSERT_TRUE(Load({.yaml = "job: 7\n"}, &config).ok());
  EXPECT_EQ(config.job(), "7");
}

TEST(Config, FieldsDescribeFlagsVariablesAndExpectations) {
  const auto fields = ConfigFields(v1::TrainerConfig());
  const ConfigField& bucket = FindField(fields, "transfer.bucket_bytes");
  EXPECT_EQ(bucket.flag, "--transfer.bucket_bytes");
  EXPECT_EQ(bucket.variable, "WSYNC_TRANSFER_BUCKET_BYTES");
  EXPECT_EQ(bucket.type, "bytes");
  EXPECT_EQ(bucket.default_text, "256MiB");
  EXPECT_EQ(bucket.expected, "64KiB to 8GiB");
  EXPECT_EQ(bucket.help, "wire bytes moved at once");
  EXPECT_EQ(FindField(fields, "coordinator.min_rate_bytes_per_second").expected, "1KiB to 10TiB");
  EXPECT_EQ(FindField(fields, "coordinator.heartbeat_ms").expected, "20ms to 1min");
  EXPECT_EQ(FindField(fields, "coordinator.policy").expected, "one of: all, quorum");
  EXPECT_EQ(FindField(fields, "recipe.fp8").expected, "true or false");
  EXPECT_TRUE(FindField(fields, "tls.allowed_peers").repeated);
}

// What the loader relies on: leaf types it can set, defaults that obey their own rules, help for every key.
template <typename Config>
void ExpectSoundSchema() {
  const Config schema;
  std::set<std::string> variables;
  for (const ConfigField& field : ConfigFields(schema)) {
    EXPECT_FALSE(field.help.empty()) << field.path;
    EXPECT_TRUE(variables.insert(field.variable).second) << field.variable << " stands for two keys";
  }
  std::vector<const google::protobuf::Descriptor*> sections = {schema.GetDescriptor()};
  for (size_t i = 0; i < sections.size(); ++i) {
    for (int f = 0; f < sections[i]->field_count(); ++f) {
      using google::protobuf::FieldDescriptor;
      const FieldDescriptor* field = sections[i]->field(f);
      const auto type = field->cpp_type();
      if (type == FieldDescriptor::CPPTYPE_MESSAGE) {
        EXPECT_FALSE(field->is_repeated()) << field->full_name();
        sections.push_back(field->message_type());
        continue;
      }
      const bool number = type == FieldDescriptor::CPPTYPE_INT32 || type == FieldDescriptor::CPPTYPE_INT64;
      EXPECT_TRUE(number || type == FieldDescriptor::CPPTYPE_STRING || type == FieldDescriptor::CPPTYPE_BOOL)
          << field->full_name();
      EXPECT_TRUE(!field->is_repeated() || type == FieldDescriptor::CPPTYPE_STRING) << field->full_name();
      const v1::FieldRule& rule = field->options().GetExtension(v1::rule);
      EXPECT_TRUE(!number || (rule.has_min() && rule.has_max() && !rule.default_value().empty())) << field->full_name();
    }
  }
}

TEST(Config, SchemasAreSound) {
  ExpectSoundSchema<v1::TrainerConfig>();
  ExpectSoundSchema<v1::RolloutConfig>();
}

template <typename Config>
void ExpectSampleEqualsDefaults(const std::string& name) {
  const std::string file = std::string(WSYNC_CONFIG_DIR "/") + name;
  const std::map<std::string, std::string> no_environment;
  Config defaults, sample;
  ASSERT_TRUE(LoadConfig({.environment = no_environment}, &defaults).ok());
  const auto values = LoadConfig({.file = file, .environment = no_environment}, &sample);
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_TRUE(MessageDifferencer::Equals(defaults, sample)) << "the sample's values are not the defaults";
  for (const ConfigValue& value : *values) {
    EXPECT_EQ(value.origin.rfind("file " + file + ":", 0), 0u) << value.path << " is not in " << name;
  }
}

TEST(Config, SamplesNameEveryKeyWithItsDefault) {
  ExpectSampleEqualsDefaults<v1::TrainerConfig>("trainer.yaml");
  ExpectSampleEqualsDefaults<v1::RolloutConfig>("rollout.yaml");
}

TEST(Config, EffectiveValuesLoadBackToTheSameConfiguration) {
  v1::TrainerConfig config, again;
  const auto values =
      Load({.yaml = "recipe:\n  include: [\"a\\\"b\", \"null\", \"x: y\", \"- z\", \"[q]\", \"t\\tt\", é]\n"}, &config);
  ASSERT_TRUE(values.ok()) << values.status();
  std::string yaml = "recipe:\n  include: " + Find(*values, "recipe.include").text + "\n";
  ASSERT_TRUE(Load({.yaml = yaml}, &again).ok()) << yaml;
  EXPECT_TRUE(MessageDifferencer::Equals(config, again)) << yaml;
}

}  // namespace
}  // namespace wsync
