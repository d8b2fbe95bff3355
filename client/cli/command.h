// What every command of `wsync` shares: exit codes, common options, how an error ends the process.
//
// Data goes to stdout, everything else to stderr, both by terminal.h. A command is a function AddXxx(app) that declares
// its options and sets a callback returning an exit code by SetExit.
#ifndef WSYNC_CLIENT_CLI_COMMAND_H_
#define WSYNC_CLIENT_CLI_COMMAND_H_

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "absl/status/status.h"

namespace wsync::cli {

enum ExitCode : int {
  kOk = 0,           // done; for status and verify: everything in sync
  kError = 1,        // it was tried and failed
  kUsage = 2,        // bad flags or bad configuration
  kDegraded = 3,     // reachable, but not in sync
  kUnreachable = 4,  // nobody answered
};

// Maps a status to the exit code and prints "wsync: <message>" on stderr.
ExitCode Fail(const absl::Status& status);

// Declares a command whose body returns an ExitCode; the body runs after parsing.
CLI::App* AddCommand(CLI::App& parent, const std::string& name, const std::string& summary, const std::string& examples,
                     std::function<ExitCode()> body);
// The code of the command that ran; kOk if none did.
ExitCode LastExit();

void AddStatus(CLI::App& app);
void AddVerify(CLI::App& app);
void AddUnfence(CLI::App& app);
void AddPublish(CLI::App& app);
void AddExport(CLI::App& app);
void AddQuantize(CLI::App& app);
void AddPlan(CLI::App& app);
void AddConfig(CLI::App& app);
void AddDemo(CLI::App& app);
void AddBench(CLI::App& app);
void AddDoctor(CLI::App& app);

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_COMMAND_H_
