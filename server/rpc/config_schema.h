// The configuration schema as the loader sees it: one entry per leaf of the descriptors, with parsing and printing of
// its values. Internal to this folder.
#ifndef WSYNC_SERVER_RPC_CONFIG_SCHEMA_H_
#define WSYNC_SERVER_RPC_CONFIG_SCHEMA_H_

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <optional>
#include <string>
#include <vector>

#include "wsync/v1/config.pb.h"

namespace wsync {

enum class ValueKind { kText, kTextList, kInteger, kBytes, kDuration, kBool };

struct SchemaField {
  std::vector<const google::protobuf::FieldDescriptor*> sections;  // from the root down to the leaf's message
  const google::protobuf::FieldDescriptor* leaf = nullptr;
  std::string path;  // "transfer.bucket_bytes"
  ValueKind kind = ValueKind::kText;
  v1::FieldRule rule;
};

// REQUIRES: leaves are string, repeated string, int32, int64 or bool (a test holds the schemas to that).
std::vector<SchemaField> WalkSchema(const google::protobuf::Descriptor& schema);

std::string FlagOf(const std::string& path);         // "--transfer.bucket_bytes"
std::string VariableOf(const std::string& path);     // "WSYNC_TRANSFER_BUCKET_BYTES"
std::string TypeText(ValueKind kind);                // "bytes", "duration", "integer", "text", "list of text", ...
std::string ExpectedText(const SchemaField& field);  // "64KiB to 8GiB", "one of: all, quorum", "text", ...

// Sets the leaf in `config` from what a file, a variable or a flag said; scalars take the last text. Returns what is
// wrong with it: "\"12 apples\" is not a size; expected 64KiB to 8GiB, such as 256MiB".
std::optional<std::string> Assign(const SchemaField& field, const std::vector<std::string>& texts,
                                  google::protobuf::Message* config);
// The leaf's value as it would be written in YAML.
std::string ValueText(const SchemaField& field, const google::protobuf::Message& config);
bool IsEmptyText(const SchemaField& field, const google::protobuf::Message& config);

// The candidate nearest to a mistyped name, when it is near enough to be meant: at most `max_distance` insertions,
// deletions, replacements or swaps away, a third of the name's length by default.
std::optional<std::string> ClosestName(const std::string& name, const std::vector<std::string>& candidates,
                                       std::optional<size_t> max_distance = std::nullopt);

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_CONFIG_SCHEMA_H_
