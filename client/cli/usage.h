// What makes a command line wrong, told in one line: what was wrong and the next thing to type. The checks are CLI11
// validators, so they run before a command's body does; nothing was started by then.
#ifndef WSYNC_CLIENT_CLI_USAGE_H_
#define WSYNC_CLIENT_CLI_USAGE_H_

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

namespace wsync::cli {

// For stderr when `app` could not parse a command line: "wsync status: there is no option '--outptu'; did you mean
// '--output'?". Names the command as far as it was understood. No newline at its end.
std::string UsageText(const CLI::App& app, const CLI::ParseError& error);

CLI::Validator OneOf(const std::vector<std::string>& names);
CLI::Validator WholeNumber(int64_t low, int64_t high);
CLI::Validator Seconds(double low, double high);
// Of a bucket, with the configuration's units: 64KiB to 8GiB. The value becomes a number of bytes.
CLI::Validator BucketBytes();
CLI::Validator KnownModel();
CLI::Validator TcpAddress();   // "trainer-0:7470"
CLI::Validator LocalSocket();  // "unix:///run/wsync/trainer.sock"
CLI::Validator TensorGlob();   // server/core/recipe.h

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_USAGE_H_
