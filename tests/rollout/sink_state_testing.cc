#include "tests/rollout/sink_state_testing.h"

#include "absl/strings/str_cat.h"

namespace wsync {
namespace {

std::string Name(const event::ReadyChanged& e) {
  return absl::StrCat(e.ready ? "ready" : "not ready", e.torn ? " torn" : "", " serving ", e.serving.version);
}
std::string Name(const event::Staged& e) { return absl::StrCat("staged ", e.version); }
std::string Name(const event::Applied& e) { return absl::StrCat("applied ", e.version); }
std::string Name(const event::Failed& e) { return absl::StrCat(e.torn ? "failed torn " : "failed ", e.version); }
template <typename T>
std::string Name(const T&) {
  return "?";
}
struct Namer {
  std::string operator()(const sink::Report& a) const {
    return std::visit([](const auto& e) { return Name(e); }, a.message);
  }
  std::string operator()(const sink::Connect& a) const { return absl::StrCat("connect ", a.begin.version); }
  std::string operator()(const sink::Receive& a) const { return absl::StrCat("receive ", a.version); }
  std::string operator()(const sink::WriteLive& a) const { return absl::StrCat("write ", a.version); }
  std::string operator()(const sink::Apply& a) const { return absl::StrCat("apply ", a.version); }
  std::string operator()(const sink::Cancel&) const { return "cancel"; }
  std::string operator()(const sink::TellPrepare& a) const {
    return absl::StrCat("-> prepare ", a.version, a.in_place ? " in place" : "");
  }
  std::string operator()(const sink::TellApply& a) const { return absl::StrCat("-> apply ", a.version); }
  std::string operator()(const sink::TellApplied& a) const { return absl::StrCat("-> applied ", a.version); }
  std::string operator()(const sink::TellTorn& a) const { return absl::StrCat("-> torn ", a.version); }
  std::string operator()(const sink::TellCancelled& a) const { return absl::StrCat("-> cancelled ", a.version); }
  std::string operator()(const sink::Detach&) const { return "detach"; }
};

}  // namespace

std::vector<std::string> SinkStateTest::Step(const sink::Event& event) {
  last_ = state_->Step(now_, event);
  std::vector<std::string> names;
  for (const sink::Action& action : last_) names.push_back(std::visit(Namer{}, action));
  return names;
}

}  // namespace wsync
