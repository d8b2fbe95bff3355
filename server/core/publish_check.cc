// Whether a version may be published, and what becomes of one whose number is committed already.
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/core/coordinator_impl.h"

namespace wsync {

using Stage = RunningPublish::Stage;

absl::Status Coordinator::Impl::CheckPublish(uint64_t version) const {
  if (version == 0) return absl::InvalidArgumentError("cannot publish version 0: versions begin with 1");
  if (version > kLastVersion) {
    return absl::InvalidArgumentError(
        absl::StrFormat("cannot publish version %d: there is none after it; the last is %d", version, kLastVersion));
  }
  if (publish_.has_value()) {
    return absl::FailedPreconditionError(
        absl::StrFormat("cannot publish version %d: version %d is still being published; "
                        "wait for its answer",
                        version, publish_->version));
  }
  if (!plan_.has_value()) {
    return absl::FailedPreconditionError(
        absl::StrFormat("cannot publish version %d: no catalog is registered; register the tensors first", version));
  }
  return version < committed_.version && !Recalling() ? OlderThanCommitted(version) : absl::OkStatus();
}

absl::Status Coordinator::Impl::OlderThanCommitted(uint64_t version) const {
  const std::string source =
      decided_ ? "" : " (most replicas serve it; this trainer agent has not committed one since it was started)";
  if (version == committed_.version) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "version %d is committed with other content, digest %s%s; versions only grow: publish %d or higher", version,
        committed_.digest.ShortHex(), source, version + 1));
  }
  return absl::FailedPreconditionError(
      absl::StrFormat("version %d is older than committed version %d%s; versions only grow: publish %d or higher",
                      version, committed_.version, source, committed_.version + 1));
}

// Asked for with the number of the committed version, or an older one.
void Coordinator::Impl::MeetCommitted() {
  if (publish_->version < committed_.version) {
    const absl::Status older = OlderThanCommitted(publish_->version);
    Log(action::Log::kWarn, std::string(older.message()));
    return AnswerPublish(older, {});
  }
  publish_->stage = Stage::kChecking;
  publish_->deadline = now_ + StageBudget();
  publish_->first_epoch = ++epoch_;
  out_.push_back(action::CheckContent{epoch_, publish_->version});
}

void Coordinator::Impl::On(const event::ContentChecked& event) {
  if (StoodStill()) return;
  if (!publish_.has_value() || publish_->stage != Stage::kChecking || publish_->first_epoch != event.epoch) return;
  if (!event.status.ok()) {
    AbortPublish(
        absl::Status(event.status.code(), absl::StrCat("its content could not be checked against the committed "
                                                       "one: ",
                                                       event.status.message())));
  } else if (event.digest != committed_.digest) {
    AbortPublish(absl::FailedPreconditionError(
        absl::StrFormat("it is committed with other content (digest %s, now %s); publish this as version %d or higher",
                        committed_.digest.ShortHex(), event.digest.ShortHex(), committed_.version + 1)));
  } else {
    VersionReport report;
    if (last_report_.has_value() && last_report_->version == event.version) report = *last_report_;
    report.version = event.version;
    report.digest = event.digest;
    report.plan = publish_->plan;
    report.already_committed = true;
    decided_ = true;
    Log(action::Log::kInfo, absl::StrFormat("version %d was committed before with the same content", event.version));
    AnswerPublish(absl::OkStatus(), std::move(report));
  }
}

}  // namespace wsync
