#include "tests/faults/group.h"

#include <unistd.h>

#include <algorithm>
#include <sstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "server/core/clock.h"

namespace wsync::faults {
namespace {

constexpr absl::Duration kResumeLimit = absl::Seconds(1);
constexpr absl::Duration kPatience = absl::Seconds(20);  // for what has no limit of its own

// Whose fault it is when the limit is missed is found in the logs.
absl::Status Late(const std::string& what) {
  return absl::DeadlineExceededError(absl::StrCat(what, " did not happen"));
}

// What a member is on its way in for, torn as it may be.
bool IsComing(const v1::MemberStatus& member) {
  for (const char* reason : {"it has not said yet", "no catalog yet", "making the plan"}) {
    if (absl::StartsWith(member.last_error(), reason)) return true;
  }
  return false;
}

}  // namespace

Group::~Group() {
  trainer_.reset();
  engines_.clear();
  agents_.reset();
  RemoveFailpointPipes();
}

absl::StatusOr<std::unique_ptr<Group>> Group::Start(GroupOptions options) {
  std::unique_ptr<Group> group(new Group(std::move(options)));
  if (absl::Status status = group->StartAll(); !status.ok()) return status;
  return group;
}

absl::Status Group::StartAll() {
  cli::LocalCluster::Options options;
  options.rollouts = options_.rollouts;
  options.trainer_flags = options_.trainer_flags;
  options.trainer_flags.emplace_back("transfer.bucket_bytes", absl::StrCat(kBucketBytes));
  options.trainer_flags.emplace_back("transfer.threads", "1");
  options.rollout_flags = options_.rollout_flags;
  options.rollout_flags.emplace_back("transfer.threads", "1");
  options.binary_suffix = "-faults";
  options.listen_host = options_.listen_host;
  options.network_of = options_.network_of;
  PrepareFailpoints();
  auto agents = cli::LocalCluster::Start(std::move(options));
  if (!agents.ok()) return agents.status();
  agents_ = *std::move(agents);
  engines_.resize(options_.rollouts);
  if (absl::Status status = StartTrainerProcess(); !status.ok()) return status;
  for (int i = 0; i < options_.rollouts; ++i) {
    if (absl::Status status = StartEngine(i); !status.ok()) return status;
  }
  return AwaitReady(Scaled(kPatience));
}

absl::Status Group::StartTrainerProcess(const std::string& told) {
  trainer_.reset();
  auto trainer = ChildProcess::Start({"fault_client", "trainer", agents_->trainer_socket()});
  if (!trainer.ok()) return trainer.status();
  trainer_ = *std::move(trainer);
  if (!told.empty()) trainer_->Tell(told);
  trainer_->Tell("register");
  return absl::OkStatus();
}

absl::Status Group::StartEngine(int rollout, const std::string& told) {
  engines_[rollout].reset();
  auto engine = ChildProcess::Start(
      {"fault_client", "engine", agents_->rollout_socket(rollout), absl::StrCat("engine-", rollout)});
  if (!engine.ok()) return engine.status();
  engines_[rollout] = *std::move(engine);
  if (!told.empty()) engines_[rollout]->Tell(told);
  engines_[rollout]->Tell("attach");
  return absl::OkStatus();
}

// ---- versions

void Group::BeginPublish(uint64_t version) { trainer_->Tell(absl::StrCat("publish ", version, " ", version)); }

std::optional<Published> Group::AwaitPublished(absl::Duration timeout) {
  const std::optional<std::string> line = trainer_->Await("done ", timeout);
  if (!line.has_value()) return std::nullopt;
  std::istringstream words(*line);
  std::string done;
  int code = 0;
  int64_t ms = 0;
  std::string outcomes;
  Published published{.at = MonotonicNow()};
  words >> done >> code >> ms >> published.epoch >> outcomes >> std::ws;
  published.code = static_cast<absl::StatusCode>(code);
  published.took = absl::Milliseconds(ms);
  for (const absl::string_view outcome : absl::StrSplit(outcomes, ',')) {
    const std::pair<std::string, std::string> pair = absl::StrSplit(outcome, absl::MaxSplits('=', 1));
    if (!pair.second.empty()) published.outcomes[pair.first] = static_cast<v1::OutcomeCode>(std::stoi(pair.second));
  }
  std::getline(words, published.message);
  return published;
}

// Not of a process that was killed, whose end the coordinator has not heard of yet.
bool Group::IsReady(const v1::MemberStatus& member) const {
  if (member.state() != "ready" && (member.state() != "torn" || IsComing(member))) return false;
  for (int i = 0; i < rollouts(); ++i) {
    if (member.pid() != agents_->rollout_pid(i)) continue;
    return engines_[i] != nullptr && absl::StrContains(member.engine(), absl::StrCat("(pid ", engines_[i]->pid(), ")"));
  }
  return false;
}

absl::Status Group::AwaitReady(absl::Duration timeout) {
  const absl::Time deadline = MonotonicNow() + timeout;
  std::string last = "no status";
  while (MonotonicNow() < deadline) {
    const auto status = agents_->Status();
    if (status.ok()) {
      int ready = 0;
      std::vector<std::string> states;
      for (const v1::MemberStatus& member : status->members()) {
        if (member.role() != "rollout") continue;
        ready += IsReady(member);
        states.push_back(
            absl::StrCat(member.name(), " ", member.state(), " ", member.engine(), " ", member.last_error()));
      }
      if (ready == rollouts() && !status->has_round() && status->catalog().registered()) return absl::OkStatus();
      last = absl::StrCat(absl::StrJoin(states, ", "), status->has_round() ? "; a round runs" : "");
    } else {
      last = std::string(status.status().message());
    }
    usleep(10'000);
  }
  return Late(absl::StrCat("readiness of all within ", absl::FormatDuration(timeout), " (", last, ")"));
}

absl::StatusOr<Content> Group::ContentOf(int rollout) {
  ChildProcess& engine = *engines_[rollout];
  if (engine.Cried()) {
    return absl::DataLossError(absl::StrCat("engine ", rollout, " served weights that changed under it"));
  }
  engine.Tell("content");
  const std::optional<std::string> line = engine.Await("content ", Scaled(absl::Seconds(5)));
  if (!line.has_value()) return absl::UnavailableError(absl::StrCat("engine ", rollout, " does not answer"));
  std::istringstream words(*line);
  std::string word, paused, torn;
  Content content;
  words >> word >> content.version >> paused >> torn >> content.name;
  content.paused = paused == "paused";
  content.torn = torn == "torn";
  return content;
}

absl::Status Group::CheckContent(int rollout, const Allowed& allowed) {
  auto content = ContentOf(rollout);
  const auto may_be = [&] { return !content->paused || (content->torn ? allowed.torn : allowed.paused); };
  // The trainer may hear that a version is applied a moment before the engine hears it.
  const absl::Time deadline = MonotonicNow() + Scaled(kResumeLimit);
  while (content.ok() && !may_be() && MonotonicNow() < deadline) {
    usleep(2000);
    content = ContentOf(rollout);
  }
  if (!content.ok()) return content.status();
  const std::string who = absl::StrCat("engine ", rollout, ", version ", content->version,
                                       content->paused ? ", paused" : "", content->torn ? ", torn" : "");
  if (!may_be()) return absl::DataLossError(absl::StrCat(who, ": it is not to be that any more"));
  if (content->paused) return absl::OkStatus();  // in the middle of a version, or told: it does not read what is there
  if (content->torn) return absl::DataLossError(absl::StrCat(who, ": it was told, and reads on"));
  const std::vector<uint64_t>& versions = allowed.versions;
  if (std::find(versions.begin(), versions.end(), content->version) == versions.end()) {
    return absl::DataLossError(absl::StrCat(who, ": expected ", absl::StrJoin(versions, " or ")));
  }
  if (content->version == 0 || content->name == oracle_.Content(content->version)) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(who, ": its memory does not hold that version"));
}

absl::Status Group::CheckStatus(const std::vector<Allowed>& allowed) {
  const auto status = agents_->Status();
  if (!status.ok()) return status.status();
  for (int i = 0; i < rollouts(); ++i) {
    const std::string name = absl::StrCat("rollout-", i);
    const auto member = std::find_if(status->members().begin(), status->members().end(),
                                     [&](const v1::MemberStatus& m) { return m.name() == name; });
    if (member == status->members().end()) return absl::NotFoundError(absl::StrCat(name, " is not listed"));
    if (absl::Status held = CheckContent(i, allowed[i]); !held.ok()) return held;
    const auto content = ContentOf(i);
    if (!content.ok()) return content.status();
    const bool torn = member->state() == "torn";
    if (content->torn == torn && (torn ? 0 : content->version) == member->serving().version()) continue;
    return absl::DataLossError(absl::StrCat(name, " is said to be ", member->state(), ", serving version ",
                                            member->serving().version(), ", and holds version ", content->version,
                                            content->torn ? ", torn" : ""));
  }
  return absl::OkStatus();
}

absl::Status Group::AwaitVersion(int rollout, uint64_t version, absl::Duration timeout) {
  const absl::Time deadline = MonotonicNow() + timeout;
  while (true) {
    const absl::Status status = CheckContent(rollout, {version}, false);
    if (status.ok()) return status;
    if (MonotonicNow() > deadline) return status;
    usleep(10'000);
  }
}

}  // namespace wsync::faults
