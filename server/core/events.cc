#include "server/core/events.h"

namespace wsync {

std::string_view MemberPhaseName(MemberPhase phase) {
  switch (phase) {
    case MemberPhase::kIdle:
      return "idle";
    case MemberPhase::kConnect:
      return "connect";
    case MemberPhase::kReceive:
      return "receive";
    case MemberPhase::kStaged:
      return "staged";
    case MemberPhase::kPause:
      return "pause";
    case MemberPhase::kApply:
      return "apply";
  }
  return "unknown";
}

}  // namespace wsync
