// A YAML file against the schema: what it sets, and everything that is wrong with its form. Internal to config*.cc.
#ifndef WSYNC_SERVER_RPC_CONFIG_FILE_H_
#define WSYNC_SERVER_RPC_CONFIG_FILE_H_

#include <google/protobuf/descriptor.h>

#include <string>
#include <vector>

namespace wsync {

struct FileEntry {
  std::string path;
  std::vector<std::string> texts;  // one for scalars
  int line = 0;
};
struct FileProblem {
  int line = 0;      // 0: of the file as a whole
  std::string path;  // of the leaf it is about; empty: none
  std::string text;
};
struct ConfigFile {
  std::vector<FileEntry> entries;
  std::vector<FileProblem> problems;
};

// Never fails: an unreadable or malformed file is a problem like any other. Values are not looked at here, only form:
// syntax, unknown and duplicate keys, sections and lists where they belong.
ConfigFile ReadConfigFile(const std::string& file, const google::protobuf::Descriptor& schema);

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_CONFIG_FILE_H_
