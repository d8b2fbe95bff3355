#include "client/cli/local_cluster.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/local/connect.h"
#include "client/local/status_client.h"
#include "server/core/clock.h"

namespace wsync::cli {
namespace {

constexpr absl::Duration kStartTimeout = absl::Seconds(20);  // sanitizer builds start slowly on two cores
constexpr absl::Duration kStopTimeout = absl::Seconds(12);   // above the daemons' own grace of 10 s
constexpr absl::Duration kPoll = absl::Milliseconds(20);
constexpr int kLogTailLines = 8;

// Below the ports that Linux gives to outgoing connections: one of those could have it before the daemon does.
absl::StatusOr<int> FreePort() {
  constexpr int kFirst = 20000, kPorts = 12000, kAttempts = 100;
  std::random_device random;
  int error = 0;
  for (int i = 0; i < kAttempts; ++i) {
    const int port = kFirst + static_cast<int>(random() % kPorts);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port));
    const bool bound = fd >= 0 && bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
    error = errno;
    if (fd >= 0) close(fd);
    if (bound) return port;
  }
  return absl::ErrnoToStatus(error, "cannot find a free port on 127.0.0.1");
}

// True once the child has ended (and was reaped).
bool WaitForExit(pid_t pid, absl::Duration timeout, int* status) {
  const absl::Time deadline = MonotonicNow() + timeout;
  while (true) {
    if (waitpid(pid, status, WNOHANG) != 0) return true;
    if (MonotonicNow() > deadline) return false;
    std::this_thread::sleep_for(absl::ToChronoMilliseconds(kPoll));
  }
}

// SIGTERM, and SIGKILL where that does not help. The exit code; -1 if it was killed or nothing ran.
int Terminate(pid_t pid) {
  if (pid <= 0) return -1;
  int status = 0;
  kill(pid, SIGTERM);
  if (WaitForExit(pid, kStopTimeout, &status)) return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  kill(pid, SIGKILL);
  waitpid(pid, nullptr, 0);
  return -1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalCluster>> LocalCluster::Start(Options options) {
  std::unique_ptr<LocalCluster> cluster(new LocalCluster(std::move(options)));
  const absl::Status started = cluster->StartAll();
  if (!started.ok()) return started;
  return cluster;
}

absl::Status LocalCluster::StartAll() {
  std::error_code error;
  binaries_ = std::filesystem::read_symlink("/proc/self/exe", error).parent_path().string();
  char pattern[] = "/tmp/wsync-XXXXXX";
  if (mkdtemp(pattern) == nullptr) return absl::ErrnoToStatus(errno, "cannot make a directory in /tmp");
  directory_ = pattern;
  const auto port = FreePort();
  if (!port.ok()) return port.status();
  coordinator_ = absl::StrCat(options_.listen_host, ":", *port);

  const absl::Status trainer = StartTrainer();
  if (!trainer.ok()) return trainer;
  rollout_pids_.assign(options_.rollouts, -1);
  for (int i = 0; i < options_.rollouts; ++i) {
    const absl::Status started = StartRollout(i);
    if (!started.ok()) return started;
  }
  return absl::OkStatus();
}

void LocalCluster::AddDevice(size_t agent, ConfigFlags& flags) const {
  if (options_.devices.empty()) return;
  flags.emplace_back("transfer.backend", "cuda");
  flags.emplace_back("transfer.device", absl::StrCat(options_.devices[agent]));
}

absl::Status LocalCluster::StartTrainer() {
  ConfigFlags flags = options_.trainer_flags;
  AddDevice(0, flags);
  flags.emplace_back("local_socket", trainer_socket());
  flags.emplace_back("coordinator.listen", coordinator_);
  const auto pid = Spawn("wsync-trainer", "trainer", flags);
  if (!pid.ok()) return pid.status();
  trainer_pid_ = *pid;
  const auto channel = ConnectLocal(trainer_socket(), kStartTimeout, "wsync-trainer", "local_socket");
  if (!channel.ok()) return absl::UnavailableError(absl::StrCat("wsync-trainer did not start:\n", LogTail("trainer")));
  return absl::OkStatus();
}

void LocalCluster::KillTrainer() {
  if (trainer_pid_ <= 0) return;
  kill(trainer_pid_, SIGKILL);
  waitpid(trainer_pid_, nullptr, 0);
  trainer_pid_ = -1;
}

absl::Status LocalCluster::LaunchRollout(int rollout) {
  const std::string name = absl::StrCat("rollout-", rollout);
  ConfigFlags flags = options_.rollout_flags;
  AddDevice(static_cast<size_t>(rollout) + 1, flags);
  flags.emplace_back("local_socket", rollout_socket(rollout));
  const auto dialled = options_.coordinator_of.find(rollout);
  flags.emplace_back("coordinator", dialled == options_.coordinator_of.end() ? coordinator_ : dialled->second);
  flags.emplace_back("name", name);
  flags.emplace_back("replica", name);
  const auto network = options_.network_of.find(rollout);
  const auto pid = Spawn("wsync-rollout", name, flags, network == options_.network_of.end() ? -1 : network->second);
  if (!pid.ok()) return pid.status();
  rollout_pids_[rollout] = *pid;
  return absl::OkStatus();
}

absl::Status LocalCluster::StartRollout(int rollout) {
  if (absl::Status launched = LaunchRollout(rollout); !launched.ok()) return launched;
  const std::string name = absl::StrCat("rollout-", rollout);
  const auto channel = ConnectLocal(rollout_socket(rollout), kStartTimeout, "wsync-rollout", "local_socket");
  if (!channel.ok()) return absl::UnavailableError(absl::StrCat(name, " did not start:\n", LogTail(name)));
  return absl::OkStatus();
}

absl::StatusOr<pid_t> LocalCluster::Spawn(const std::string& binary, const std::string& name, const ConfigFlags& flags,
                                          int network) {
  const std::string path = binaries_ + "/" + binary + options_.binary_suffix;
  if (access(path.c_str(), X_OK) != 0) {
    return absl::NotFoundError(absl::StrCat("no ", path,
                                            ": build all of wsync ('deploy/build.sh'), or install the agents "
                                            "beside the wsync command"));
  }
  std::vector<std::string> words = {path};
  for (const auto& [key, value] : flags) words.push_back(absl::StrCat("--", key, "=", value));
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const std::string log = log_path(name);
  const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", log));
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) {  // only async-signal-safe calls: other threads may hold locks
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    if (network >= 0 && setns(network, CLONE_NEWNET) != 0) _exit(127);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  const int error = errno;
  close(fd);
  if (pid < 0) return absl::ErrnoToStatus(error, absl::StrCat("cannot start ", path));
  return pid;
}

LocalCluster::~LocalCluster() {
  for (const pid_t pid : rollout_pids_) Terminate(pid);
  Terminate(trainer_pid_);
  if (options_.keep || directory_.empty()) return;
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

std::string LocalCluster::trainer_socket() const { return absl::StrCat("unix://", directory_, "/trainer.sock"); }

std::string LocalCluster::rollout_socket(int rollout) const {
  return absl::StrCat("unix://", directory_, "/rollout-", rollout, ".sock");
}

int LocalCluster::StopRollout(int rollout) {
  const int code = Terminate(rollout_pids_[rollout]);
  rollout_pids_[rollout] = -1;
  return code;
}

void LocalCluster::KillRollout(int rollout) {
  if (rollout_pids_[rollout] <= 0) return;
  kill(rollout_pids_[rollout], SIGKILL);
  waitpid(rollout_pids_[rollout], nullptr, 0);
  rollout_pids_[rollout] = -1;
}

absl::StatusOr<v1::JobStatus> LocalCluster::Status() const {
  return GetJobStatus(coordinator_, v1::TlsConfig(), absl::Seconds(5));
}

absl::StatusOr<v1::JobStatus> LocalCluster::WaitFor(const std::function<bool(const v1::JobStatus&)>& done,
                                                    absl::Duration timeout, const std::string& what) const {
  const absl::Time deadline = MonotonicNow() + timeout;
  while (true) {
    auto status = Status();
    if (!status.ok() || done(*status)) return status;
    if (MonotonicNow() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat(what, " did not happen within ", absl::FormatDuration(timeout), ": ", status->reason()));
    }
    std::this_thread::sleep_for(absl::ToChronoMilliseconds(kPoll));
  }
}

int64_t LocalCluster::PrivateBytes(pid_t pid) {
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  int64_t kib = 0;
  for (std::string line; std::getline(status, line);) {
    std::istringstream fields(line);
    std::string key;
    int64_t value = 0;
    fields >> key >> value;
    if (key == "RssAnon:" || key == "RssFile:") kib += value;
  }
  return kib << 10;
}

std::string LocalCluster::log_path(const std::string& agent) const {
  return absl::StrCat(directory_, "/", agent, ".log");
}

std::string LocalCluster::LogTail(const std::string& name) const {
  std::ifstream log(log_path(name));
  std::vector<std::string> lines;
  for (std::string line; std::getline(log, line);) lines.push_back("  " + line);
  std::string tail;
  for (size_t i = lines.size() > kLogTailLines ? lines.size() - kLogTailLines : 0; i < lines.size(); ++i) {
    absl::StrAppend(&tail, lines[i], "\n");
  }
  return tail.empty() ? "  (it wrote no log)" : tail;
}

}  // namespace wsync::cli
