#include "server/rpc/config_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <cerrno>
#include <map>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/rpc/config_schema.h"
#include "server/rpc/errno_text.h"
#include "server/rpc/wire_text.h"

namespace wsync {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

constexpr size_t kMaxFileBytes = 1 << 20;  // a hundred times any real one; keeps a wrong path from filling memory

absl::Status ReadError(const std::string& file, int error) {
  return absl::InvalidArgumentError(absl::StrCat("cannot read config file ", file, ": ", ErrnoText(error)));
}

absl::StatusOr<std::string> ReadAll(const std::string& file) {
  const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO must not hang the start
  if (fd < 0) return ReadError(file, errno);
  std::string text;
  char block[16 << 10];
  ssize_t got = 0;
  while (text.size() <= kMaxFileBytes && (got = read(fd, block, sizeof(block))) > 0) text.append(block, got);
  const int error = errno;
  close(fd);
  if (got < 0) return ReadError(file, error);
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("config file ", file, " is larger than ", kMaxFileBytes, " bytes; is it the right file?"));
  }
  return text;
}

int LineOf(const YAML::Node& node) { return node.Mark().line + 1; }

const char* FormOf(const YAML::Node& node) {
  if (node.IsMap()) return "a section";
  if (node.IsSequence()) return "a list";
  return node.IsNull() ? "nothing" : "a single value";
}

class Reader {
 public:
  Reader(const Descriptor& root, ConfigFile* result) : root_(root), result_(result) {}

  void ReadSection(const YAML::Node& section, const Descriptor& schema, const std::string& prefix) {
    std::map<std::string, int> seen;  // yaml-cpp keeps duplicates and would serve either
    for (const auto& pair : section) {
      const YAML::Node& key = pair.first;
      if (!key.IsScalar()) {
        Problem(LineOf(key), "", absl::StrCat("a key must be text, this one is ", FormOf(key)));
        continue;
      }
      const std::string path = absl::StrCat(prefix, key.Scalar());
      const FieldDescriptor* field = schema.FindFieldByName(key.Scalar());
      const auto [earlier, is_new] = seen.emplace(key.Scalar(), LineOf(key));
      if (field == nullptr) {
        Problem(LineOf(key), "", UnknownKey(path, key.Scalar(), schema, prefix));
      } else if (!is_new) {
        Problem(LineOf(key), path, absl::StrCat(path, ": given twice, first on line ", earlier->second, "; keep one"));
      } else {
        ReadField(*field, path, pair.second, LineOf(key));
      }
    }
  }

 private:
  void Problem(int line, const std::string& path, std::string text) {
    result_->problems.push_back({line, path, std::move(text)});
  }

  void ReadField(const FieldDescriptor& field, const std::string& path, const YAML::Node& value, int line) {
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      if (value.IsMap()) return ReadSection(value, *field.message_type(), absl::StrCat(path, "."));
      if (value.IsNull()) return;  // all of its keys are commented out
      const std::string& first = field.message_type()->field(0)->name();
      return Problem(line, path,
                     absl::StrCat(path, ": ", FormOf(value), " is not a section; expected keys below it, such as \"",
                                  first, ":\""));
    }
    if (field.is_repeated()) return ReadList(path, value, line);
    if (!value.IsScalar()) {
      const char* hint = value.IsNull() ? "; write \"\" for empty text, or remove the key" : "";
      return Problem(line, path, absl::StrCat(path, ": ", FormOf(value), " where a single value is expected", hint));
    }
    result_->entries.push_back({path, {value.Scalar()}, line});
  }

  void ReadList(const std::string& path, const YAML::Node& value, int line) {
    if (!value.IsSequence()) {
      return Problem(line, path,
                     absl::StrCat(path, ": ", FormOf(value), " where a list is expected, such as [\"a\", \"b\"]"));
    }
    FileEntry entry{path, {}, line};
    for (const YAML::Node& item : value) {
      if (!item.IsScalar()) {
        return Problem(LineOf(item), path,
                       absl::StrCat(path, ": ", FormOf(item), " where a list entry of text is expected"));
      }
      entry.texts.push_back(item.Scalar());
    }
    result_->entries.push_back(std::move(entry));
  }

  std::string UnknownKey(const std::string& path, const std::string& name, const Descriptor& schema,
                         const std::string& prefix) const {
    const std::string unknown = absl::StrCat("unknown key ", Quoted(path));
    std::vector<std::string> names;
    for (int i = 0; i < schema.field_count(); ++i) names.push_back(schema.field(i)->name());
    if (const auto near = ClosestName(name, names); near.has_value()) {
      return absl::StrCat(unknown, "; did you mean ", Quoted(absl::StrCat(prefix, *near)), "?");
    }
    for (const SchemaField& field : WalkSchema(root_)) {  // right name, wrong section
      if (field.path == path) {
        return absl::StrCat(unknown, "; write ", Quoted(field.leaf->name()), " below the section it belongs to");
      }
      if (field.leaf->name() == name) return absl::StrCat(unknown, "; did you mean ", Quoted(field.path), "?");
    }
    return absl::StrCat(unknown, "; `--help` lists all keys");
  }

  const Descriptor& root_;
  ConfigFile* result_;
};

}  // namespace

ConfigFile ReadConfigFile(const std::string& file, const Descriptor& schema) {
  ConfigFile result;
  const absl::StatusOr<std::string> text = ReadAll(file);
  if (!text.ok()) {
    result.problems.push_back({0, "", std::string(text.status().message())});
    return result;
  }
  try {
    // yaml-cpp takes an unclosed quote as closed when the file ends in a newline.
    const std::vector<YAML::Node> documents = YAML::LoadAll(std::string(absl::StripTrailingAsciiWhitespace(*text)));
    if (documents.size() > 1) {
      result.problems.push_back({LineOf(documents[1]), "", "a second YAML document begins here; expected one"});
    } else if (!documents.empty() && documents[0].IsMap()) {
      Reader(schema, &result).ReadSection(documents[0], schema, "");
    } else if (!documents.empty() && !documents[0].IsNull()) {
      result.problems.push_back(
          {LineOf(documents[0]), "",
           absl::StrCat(FormOf(documents[0]), " where keys are expected, such as \"job: default\"")});
    }
  } catch (const YAML::Exception& e) {
    result.problems.push_back({e.mark.line + 1, "", absl::StrCat("not valid YAML: ", e.msg)});
  }
  return result;
}

}  // namespace wsync
