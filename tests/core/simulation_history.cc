// Events and actions as lines of a run's history.
#include <string>
#include <variant>

#include "absl/strings/str_cat.h"
#include "tests/core/simulation_world.h"

namespace wsync::sim {
namespace {

struct EventText {
  std::string operator()(const event::CatalogRegistered&) { return "catalog registered"; }
  std::string operator()(const event::CatalogGone&) { return "catalog gone"; }
  std::string operator()(const event::Publish& e) { return absl::StrCat("publish v", e.version); }
  std::string operator()(const event::CallersGone& e) { return absl::StrCat("callers of v", e.version, " gone"); }
  std::string operator()(const event::ContentChecked& e) {
    return absl::StrCat("content checked ", e.digest.ShortHex());
  }
  std::string operator()(const event::SourceReleased& e) {
    return absl::StrCat("source released v", e.version, " ", e.digest.ShortHex());
  }
  std::string operator()(const event::SourceSent& e) { return absl::StrCat("source sent e", e.epoch); }
  std::string operator()(const event::SourceFailed& e) {
    return absl::StrCat("source failed e", e.epoch, " v", e.version, e.version_lost ? " lost " : " ",
                        e.status.ToString());
  }
  std::string operator()(const event::Joined& e) {
    return absl::StrCat("m", e.member, " joined as ", e.info.name, " serving v", e.info.serving.version);
  }
  std::string operator()(const event::ReadyChanged& e) {
    return absl::StrCat("m", e.member, e.ready ? " ready" : " not ready", e.torn ? " torn" : "", " serving v",
                        e.serving.version);
  }
  std::string operator()(const event::HeartbeatSeen& e) { return absl::StrCat("m", e.member, " alive e", e.epoch); }
  std::string operator()(const event::Staged& e) { return absl::StrCat("m", e.member, " staged e", e.epoch); }
  std::string operator()(const event::Applied& e) { return absl::StrCat("m", e.member, " applied e", e.epoch); }
  std::string operator()(const event::Failed& e) {
    return absl::StrCat("m", e.member, " failed e", e.epoch, e.torn ? " torn " : " ", e.status.ToString());
  }
  std::string operator()(const event::Left& e) { return absl::StrCat("m", e.member, " left"); }
  std::string operator()(const event::Lost& e) { return absl::StrCat("m", e.member, " lost"); }
  std::string operator()(const event::Unfence& e) { return absl::StrCat("unfence ", e.name); }
  std::string operator()(const event::Tick&) { return "tick"; }
};

struct ActionText {
  std::string operator()(const action::SendWelcome& a) { return absl::StrCat("welcome m", a.member); }
  std::string operator()(const action::SendCatalog& a) { return absl::StrCat("catalog m", a.member); }
  std::string operator()(const action::Refuse& a) {
    return absl::StrCat("refuse m", a.member, " ", a.status.ToString());
  }
  std::string operator()(const action::SendBegin& a) {
    return absl::StrCat("begin m", a.member, " e", a.epoch, " v", a.version);
  }
  std::string operator()(const action::SendCommit& a) {
    return absl::StrCat("commit m", a.member, " e", a.epoch, " v", a.version);
  }
  std::string operator()(const action::SendAbort& a) {
    return absl::StrCat("abort m", a.member, " e", a.epoch, " ", a.status.ToString());
  }
  std::string operator()(const action::Disconnect& a) { return absl::StrCat("disconnect m", a.member, " ", a.reason); }
  std::string operator()(const action::StartSource& a) {
    return absl::StrCat("start source e", a.epoch, " v", a.version, " world ", a.world, a.encode ? " encode" : "");
  }
  std::string operator()(const action::CancelSource& a) {
    return absl::StrCat("cancel source e", a.epoch, a.drop_version ? " drop" : "");
  }
  std::string operator()(const action::CheckContent& a) { return absl::StrCat("check content v", a.version); }
  std::string operator()(const action::PublishAccepted& a) { return absl::StrCat("accepted v", a.version); }
  std::string operator()(const action::PublishReleased& a) { return absl::StrCat("released v", a.version); }
  std::string operator()(const action::PublishDone& a) {
    return absl::StrCat("done v", a.version, " ", a.status.ToString());
  }
  std::string operator()(const action::Unfenced& a) { return absl::StrCat("unfenced ", a.names.size()); }
  std::string operator()(const action::Log& a) { return absl::StrCat("log: ", a.text); }
};

}  // namespace

std::string Brief(const Event& event) { return std::visit(EventText{}, event); }
std::string Brief(const Action& action) { return std::visit(ActionText{}, action); }

}  // namespace wsync::sim
