// wsync publish: sends a checkpoint through a trainer agent, as a training process would.
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "client/checkpoint/model.h"
#include "client/checkpoint/source_scheme.h"
#include "client/cli/command.h"
#include "client/cli/progress_bar.h"
#include "client/cli/shared_model.h"
#include "client/cli/status_view.h"
#include "client/cli/terminal.h"
#include "client/cli/usage.h"
#include "client/local/trainer_client.h"

namespace wsync::cli {
namespace {

struct PublishArguments {
  std::string model;
  std::string socket = "unix:///run/wsync/trainer.sock";
  uint64_t version = 0;  // 0: the next one
  bool replace = false;
};

std::string interrupted;  // said by a signal handler, which may not make it up

// A version whose publisher goes before it is released is called off, and goes on when it goes later.
void SayIfInterrupted(uint64_t version) {
  interrupted = absl::StrCat("\nwsync: interrupted: version ", version,
                             " is called off, unless its weights were read already: 'wsync status' tells\n");
  for (const int signal : {SIGINT, SIGTERM}) {
    std::signal(signal, [](int number) {
      (void)!write(STDERR_FILENO, interrupted.data(), interrupted.size());
      _exit(128 + number);
    });
  }
}

int64_t Applied(const v1::VersionReport& report) {
  return std::count_if(report.replicas().begin(), report.replicas().end(),
                       [](const v1::ReplicaOutcome& replica) { return replica.outcome() == v1::OUTCOME_APPLIED; });
}

void PrintReport(const v1::VersionReport& report) {
  if (report.already_committed()) {
    Print(stdout, "version %lu is committed already, with the same content; nothing was moved\n", report.version());
    return;
  }
  Print(stdout, "version %lu committed by %s: %s, %s to each, digest %s\n", report.version(),
        Counted(Applied(report), "replica").c_str(), Counted(report.tensors(), "tensor").c_str(),
        FormatBytes(report.payload_bytes()).c_str(), ShortHash(report.content_digest()).c_str());
  Print(stdout, "released after %s, staged after %s, committed after %s\n", FormatMs(report.released_ms()).c_str(),
        FormatMs(report.staged_ms()).c_str(), FormatMs(report.committed_ms()).c_str());
}

// Names every replica that does not serve the version.
ExitCode Judge(const v1::VersionReport& report) {
  ExitCode code = kOk;
  for (const v1::ReplicaOutcome& replica : report.replicas()) {
    if (replica.outcome() == v1::OUTCOME_APPLIED) continue;
    Print(stderr, "wsync: %s %s: %s\n", replica.replica().c_str(),
          replica.outcome() == v1::OUTCOME_TORN ? "is torn" : "was left out", replica.reason().c_str());
    code = kDegraded;
  }
  return code;
}

// Puts the checkpoint's model in the agent's hands. What it is quantized in already must be what the agent would make
// of the rest; the agent knows that by the tensors, but for schemes that only config.json tells.
absl::StatusOr<v1::RegisterReply> Register(const Checkpoint& checkpoint, const Model& model, SharedModel& shared,
                                           TrainerClient& client, bool replace) {
  auto registered = shared.Register(client, model.modules_to_not_convert, replace);
  if (!registered.ok() || registered->quantized_tensors() == 0) return registered;
  absl::Status status = CheckSourceSchemes(checkpoint.config(), checkpoint.path());
  if (status.ok()) return registered;
  (void)client.Unregister();
  return status;
}

ExitCode Run(const PublishArguments& arguments) {
  const auto checkpoint = Checkpoint::Open(arguments.model);
  if (!checkpoint.ok()) return Fail(checkpoint.status());
  for (const std::string& note : (*checkpoint)->notes()) Tell("note", note);
  auto client = TrainerClient::Connect(arguments.socket, absl::Seconds(5));
  if (!client.ok()) return Fail(client.status());
  ProgressBar mapping("mapping");
  const Model model = ModelOf(**checkpoint);
  auto shared = SharedModel::FromModel(model, (*checkpoint)->path(), [&](int64_t done, int64_t total) {
    mapping.Update(static_cast<double>(done) / std::max<int64_t>(total, 1), FormatBytes(done));
  });
  mapping.Clear();
  if (!shared.ok()) return Fail(shared.status());
  const auto registered = Register(**checkpoint, model, *shared, **client, arguments.replace);
  if (!registered.ok()) return Fail(registered.status());

  const uint64_t version = arguments.version > 0 ? arguments.version : registered->committed().version() + 1;
  ProgressBar bar(absl::StrCat("version ", version));
  PublishObserver observer;
  observer.progress = [&](const v1::PublishProgress& p) {
    const double total = 2.0 * std::max<uint64_t>(p.total_bytes(), 1);
    bar.Update((p.encoded_bytes() + p.sent_bytes()) / total,
               absl::StrCat(FormatBytes(p.sent_bytes()), " sent, ", p.staged_replicas(), "/", p.replicas(), " staged, ",
                            p.applied_replicas(), "/", p.replicas(), " applied"));
  };
  SayIfInterrupted(version);
  bar.Wait("the agent to begin, which it does once enough replicas are ready");
  const auto report = (*client)->Publish(version, observer);
  bar.Clear();
  if (!report.ok()) {
    // The reason is what matters. An agent that still answers is there, whatever the version lacked.
    const bool agent_answers = (*client)->Unregister().ok();
    const ExitCode code = Fail(report.status());
    return agent_answers ? kError : code;
  }
  // Not unregistered: the agent's copy goes on serving replicas that come or come back, and whoever publishes next
  // takes over from a process that has ended.
  PrintReport(*report);
  return Judge(*report);
}

}  // namespace

void AddPublish(CLI::App& app) {
  auto arguments = std::make_shared<PublishArguments>();
  CLI::App* command = AddCommand(
      app, "publish", "Send a checkpoint to every rollout, through a trainer agent",
      "  wsync publish --model Qwen2.5-7B --version 7\n"
      "  wsync publish --model ckpt --socket unix:///tmp/trainer.sock\n"
      "\nReplicas that attach later get the version too: the agent keeps its FP8 copy (source_mode: full)."
      "\nExit codes: 0 every replica that was ready serves it, 1 not committed, 3 some were left out, 4 no agent.\n"
      "Replicas that are lost or have no engine are not waited for: 'wsync status' names them.\n",
      [arguments] { return Run(*arguments); });
  command->add_option("-m,--model", arguments->model, "checkpoint directory, or one .safetensors file")->required();
  command
      ->add_option("--version", arguments->version,
                   "number of this state of the weights, only ever grows; default: the committed one plus 1")
      ->check(WholeNumber(1, INT64_MAX));
  command->add_option("-s,--socket", arguments->socket, "the trainer agent's local_socket")
      ->envname("WSYNC_LOCAL_SOCKET")
      ->check(LocalSocket())
      ->capture_default_str();
  command->add_flag("--replace", arguments->replace, "take over from another registered training process");
}

}  // namespace wsync::cli
