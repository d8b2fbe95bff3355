// Whatever key a text of ours tells people to set exists.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <string>

#include "server/rpc/config_schema.h"

namespace wsync {
namespace {

const std::filesystem::path kSources = WSYNC_SOURCE_DIR;

std::set<std::string> Keys() {
  std::set<std::string> keys;
  for (const auto* schema : {v1::TrainerConfig::descriptor(), v1::RolloutConfig::descriptor()}) {
    for (const SchemaField& field : WalkSchema(*schema)) keys.insert(field.path);
  }
  return keys;
}

std::string SectionOf(const std::string& key) { return key.substr(0, key.find('.')); }

std::set<std::string> Sections() {
  std::set<std::string> sections;
  for (const std::string& key : Keys()) sections.insert(SectionOf(key));
  return sections;
}

std::string ReadAll(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// "word.word" in `text`, but for names of files and tensors, and what follows a path or a longer name.
std::set<std::string> DottedWords(const std::string& text) {
  static const std::regex kWord(R"((^|[^\w./-])([a-z][a-z_]*\.[a-z][a-z_0-9]*)(?![\w/.*]))");
  static const std::set<std::string> kFiles = {"json", "h",  "yaml", "safetensors", "md",    "py",
                                               "sock", "sh", "cc",   "proto",       "weight"};
  std::set<std::string> words;
  for (std::sregex_iterator it(text.begin(), text.end(), kWord), end; it != end; ++it) {
    const std::string word = (*it)[2];
    if (!kFiles.contains(word.substr(word.find('.') + 1))) words.insert(word);
  }
  return words;
}

TEST(NamedKeys, EveryKeyThatAMessageNamesExists) {
  static const std::regex kLiteral(R"re("((?:[^"\\\n]|\\.)*)")re");
  const std::set<std::string> keys = Keys();
  int found = 0;
  for (const char* folder : {"server", "client/cli", "client/local"}) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(kSources / folder)) {
      if (entry.path().extension() != ".cc" && entry.path().extension() != ".h") continue;
      std::ifstream file(entry.path());
      for (std::string line; std::getline(file, line);) {
        // Steps of the protocol have such names, too; they are for tests only.
        if (line.find("POINT(") != std::string::npos || line.starts_with("#include") || line.starts_with("//"))
          continue;
        for (std::sregex_iterator it(line.begin(), line.end(), kLiteral), end; it != end; ++it) {
          for (const std::string& word : DottedWords((*it)[1])) {
            ++found;
            EXPECT_TRUE(keys.contains(word)) << entry.path() << " names " << word << ", which is no key:\n" << line;
          }
        }
      }
    }
  }
  EXPECT_GT(found, 30);
}

TEST(NamedKeys, EveryKeyThatAPageNamesExists) {
  static const std::regex kCode("`([^`\n]*)`");
  const std::set<std::string> keys = Keys();
  const std::set<std::string> sections = Sections();
  int found = 0;
  for (const char* page : {"README.md", "proto/README.md", "server/README.md", "client/python/README.md"}) {
    const std::string text = ReadAll(kSources / page);
    for (std::sregex_iterator it(text.begin(), text.end(), kCode), end; it != end; ++it) {
      for (const std::string& word : DottedWords((*it)[1])) {
        if (!sections.contains(SectionOf(word))) continue;
        ++found;
        EXPECT_TRUE(keys.contains(word)) << page << " names " << word << ", which is no key";
      }
    }
  }
  EXPECT_GT(found, 0);
}

}  // namespace
}  // namespace wsync
