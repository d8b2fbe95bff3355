#include "server/rpc/daemon.h"

#include <google/protobuf/message.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <iostream>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/core/clock.h"
#include "server/core/printable.h"
#include "server/core/sync.h"
#include "server/rpc/config.h"
#include "server/rpc/config_schema.h"
#include "server/rpc/grpc_log.h"
#include "server/rpc/log.h"
#include "server/rpc/signals.h"
#include "server/rpc/tls.h"
#include "server/rpc/version.h"
#include "server/rpc/wire_text.h"
#include "wsync/v1/config.pb.h"

namespace wsync {
namespace {

constexpr int kError = 1;
constexpr int kUsage = 2;
// What runs may take this long to end: as long as a round's deadline, and well below the 90 s of systemd and the 30 s
// of Kubernetes before they kill.
constexpr absl::Duration kGrace = absl::Seconds(10);
constexpr absl::Duration kHealthPeriod = absl::Milliseconds(250);
// A daemon that is broken says so and leaves its group within this, or its peers see it go: a wedged thread makes Stop
// hang, a log that nobody reads any more the last line.
constexpr absl::Duration kLastWords = absl::Seconds(2);

struct Arguments {
  std::string config_file;
  bool check_config = false;
  std::vector<std::pair<std::string, std::string>> flags;
};

// "transfer" of "transfer.bucket_bytes": the heading its flag is shown under.
std::string GroupOf(const ConfigField& field) {
  const size_t dot = field.path.find('.');
  return dot == std::string::npos ? "General settings" : absl::StrCat("Settings: ", field.path.substr(0, dot));
}

std::string HelpOf(const ConfigField& field) {
  std::string help = field.help;
  const bool tells_more = field.expected != "text" && field.type != "true/false" && !field.repeated;
  if (tells_more) absl::StrAppend(&help, " (", field.expected, ")");
  if (field.repeated) absl::StrAppend(&help, " (comma-separated, or given again)");
  if (field.default_text != "\"\"" && !field.repeated) absl::StrAppend(&help, " [", field.default_text, "]");
  return help;
}

std::string Footer(const DaemonSpec& spec) {
  return absl::StrCat(
      "\nEvery setting is also a key of the file and a variable: --log.level is\n"
      "\"log:\" with \"level:\" below it, and WSYNC_LOG_LEVEL.\n"
      "Precedence: flag, environment, file, default.\n\nExamples:\n",
      spec.examples);
}

// A list, because CLI11 keeps the addresses of the texts.
using FlagTexts = std::list<std::pair<std::string, std::vector<std::string>>>;

void AddFlags(const std::vector<ConfigField>& fields, CLI::App* app, FlagTexts* texts) {
  for (const ConfigField& field : fields) {
    auto& slot = texts->emplace_back(field.path, std::vector<std::string>());
    auto* option = app->add_option(field.flag, slot.second, HelpOf(field));
    option->type_name(field.type)->group(GroupOf(field))->allow_extra_args(false);
    if (!field.repeated) option->expected(1);
  }
}

absl::Status UnexpectedArgument(const std::string& argument, const std::vector<ConfigField>& fields) {
  std::vector<std::string> known = {"--config", "--check-config", "--version", "--help"};
  for (const ConfigField& field : fields) known.push_back(field.flag);
  const auto near = ClosestName(argument.substr(0, argument.find('=')), known);
  return absl::InvalidArgumentError(
      absl::StrCat("unexpected argument ", Quoted(argument), "; ",
                   near.has_value() ? absl::StrCat("did you mean ", *near, "?") : "--help lists all flags"));
}

int Fail(const DaemonSpec& spec, const absl::Status& status, int code) {
  std::cerr << spec.name << ": " << PrintableLines(std::string(status.message())) << std::endl;
  return code;
}

// Returns main's exit code when there is nothing left to do.
std::optional<int> ParseArguments(int argc, char** argv, const DaemonSpec& spec, Arguments* arguments) {
  CLI::App app(spec.description, spec.name);
  app.get_formatter()->column_width(40);
  app.footer(Footer(spec));
  app.allow_extras();  // reported below, with a suggestion
  app.set_version_flag("--version", absl::StrCat(spec.name, " ", std::string(kVersion)), "print the version and exit");
  app.add_option("--config", arguments->config_file, "YAML file with settings")->type_name("FILE");
  app.add_flag("--check-config", arguments->check_config,
               "print every setting with its origin and exit: 0 if the configuration is good and the files of tls\n"
               "can be used, else 2");
  const std::vector<ConfigField> fields = ConfigFields(*spec.config);
  FlagTexts texts;
  AddFlags(fields, &app, &texts);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e, std::cout, std::cerr) == 0 ? 0 : kUsage;
  }
  if (!app.remaining().empty()) return Fail(spec, UnexpectedArgument(app.remaining()[0], fields), kUsage);
  for (const auto& [path, values] : texts) {
    for (const std::string& value : values) arguments->flags.emplace_back(path, value);
  }
  return std::nullopt;
}

void PrintEffective(const std::vector<ConfigValue>& values) {
  size_t width = 0;
  for (const ConfigValue& value : values) width = std::max(width, value.path.size() + 2 + value.text.size());
  for (const ConfigValue& value : values) {
    std::cout << absl::StrFormat("%-*s  # %s\n", static_cast<int>(width),
                                 Printable(absl::StrCat(value.path, ": ", value.text)), Printable(value.origin));
  }
  std::cout.flush();
}

// A section that both daemons' configurations have.
template <typename Section>
const Section& SectionOf(const google::protobuf::Message& config, const std::string& name) {
  const auto* field = config.GetDescriptor()->FindFieldByName(name);
  return *google::protobuf::DynamicCastToGenerated<Section>(&config.GetReflection()->GetMessage(config, field));
}

LogOptions LogOptionsFrom(const google::protobuf::Message& config, const std::string& component) {
  LogOptions options{.component = component};
  const auto* log = &SectionOf<v1::LogConfig>(config, "log");
  options.level = log->level();
  options.format = log->format();
  options.file = log->file();
  return options;
}

void TakeHangup(const std::string& log_file) {
  const absl::Status reopened = ReopenLog();
  if (!reopened.ok()) {
    LogWarn("SIGHUP: lines go on to where they went", {{"error", std::string(reopened.message())}});
  } else {
    LogInfo(log_file.empty() ? "SIGHUP: there is no log.file to open anew" : "SIGHUP: opened the log file anew",
            {{"configuration", "is read at the start only"}});
  }
}

// The signal that ends the daemon, or why it cannot go on.
absl::StatusOr<int> WaitForEnd(SignalWatcher& signals, const Daemon& daemon, const std::string& log_file) {
  while (true) {
    const std::optional<int> signal = signals.WaitUntil(MonotonicNow() + kHealthPeriod);
    if (signal == SIGHUP) TakeHangup(log_file);
    if (signal.has_value() && *signal != SIGHUP) return *signal;
    TellLeftOutOfLog();
    absl::Status health = daemon.Health();
    health.Update(ListenersHealth());
    if (!health.ok()) return health;
  }
}

[[noreturn]] void ExitForRestart(Daemon* daemon, const absl::Status& why) {
  struct Latch {
    Mutex mu;
    CondVar changed;
    bool done ABSL_GUARDED_BY(mu) = false;
  };
  const auto latch = std::make_shared<Latch>();
  std::thread([daemon, why, latch] {
    LogError("broken: only a restart helps, and a supervisor has to make it",
             {{"error", std::string(why.message())}, {"exit_code", absl::StrCat(kExitForRestart)}});
    daemon->Stop(absl::ZeroDuration());
    MutexLock lock(&latch->mu);
    latch->done = true;
    latch->changed.SignalAll();
  }).detach();
  const absl::Time deadline = MonotonicNow() + kLastWords;
  {
    MutexLock lock(&latch->mu);
    while (!latch->done && latch->changed.WaitUntil(&latch->mu, deadline)) {
    }
  }
  _exit(kExitForRestart);  // no destructors: they would wait for what is wedged
}

// As many connections and mapped memories as the system lets us have: the soft limit is often 1024, for the sake of
// select, which nothing here uses.
void RaiseOpenFileLimit() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)setrlimit(RLIMIT_NOFILE, &limit);  // else it stays what it was
}

int Serve(const DaemonSpec& spec, const std::string& log_file) {
  RaiseOpenFileLimit();
  TakeGrpcLog();
  auto signals = SignalWatcher::Create();
  if (!signals.ok()) return Fail(spec, signals.status(), kError);
  auto daemon = spec.start();
  if (!daemon.ok()) {
    LogError("cannot start", {{"error", std::string(daemon.status().message())}});
    // Whoever started it looks at stderr first.
    return log_file.empty() ? kError : Fail(spec, daemon.status(), kError);
  }
  LogInfo((*daemon)->Banner(), {{"version", std::string(kVersion)}, {"pid", absl::StrCat(getpid())}});
  const auto signal = WaitForEnd(**signals, **daemon, log_file);
  if (!signal.ok()) ExitForRestart(daemon->get(), signal.status());
  LogInfo("stopping; the same signal again ends it at once", {{"signal", *signal == SIGINT ? "SIGINT" : "SIGTERM"}});
  (*daemon)->Stop(kGrace);
  daemon->reset();
  LogInfo("stopped");
  return 0;
}

}  // namespace

int RunDaemon(int argc, char** argv, const DaemonSpec& spec) {
  Arguments arguments;
  if (const auto code = ParseArguments(argc, argv, spec, &arguments); code.has_value()) return *code;
  const auto values = LoadConfig({.file = arguments.config_file, .flags = std::move(arguments.flags)}, spec.config);
  if (!values.ok())
    return Fail(spec, absl::InvalidArgumentError(absl::StrCat("bad configuration:\n", values.status().message())),
                kUsage);
  if (arguments.check_config) {
    const auto credentials = ServerCredentialsFor(SectionOf<v1::TlsConfig>(*spec.config, "tls"));
    if (!credentials.ok()) return Fail(spec, credentials.status(), kUsage);
    PrintEffective(*values);
    return 0;
  }
  const LogOptions log = LogOptionsFrom(*spec.config, spec.component);
  if (const absl::Status s = InitLog(log); !s.ok()) return Fail(spec, s, kUsage);
  return Serve(spec, log.file);
}

}  // namespace wsync
