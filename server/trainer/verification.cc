#include "server/trainer/verification.h"

#include <utility>

#include "server/rpc/convert.h"
#include "server/rpc/wire_text.h"
#include "server/trainer/member_messages.h"

namespace wsync {

Verification::Verification(std::map<MemberId, std::string> members, absl::Time deadline,
                           grpc::ServerUnaryReactor* reactor, v1::VerifyReply* reply)
    : waiting_(std::move(members)), deadline_(deadline), reactor_(reactor), reply_(reply) {
  FinishIfComplete();
}

Verification::~Verification() {
  if (reactor_ != nullptr) reactor_->Finish(ToGrpc(absl::UnavailableError("the trainer agent is shutting down")));
}

void Verification::Add(std::map<MemberId, std::string>::iterator member, v1::MemberVerification row) {
  row.set_name(WireText(member->second));
  waiting_.erase(member);
  if (budget_.Take(row)) *reply_->add_members() = std::move(row);
  reply_->set_members_omitted(budget_.omitted());
  FinishIfComplete();
}

void Verification::Answer(MemberId member, const v1::Verified& verified) {
  const auto it = waiting_.find(member);
  if (done() || it == waiting_.end()) return;
  v1::MemberVerification row;
  *row.mutable_serving() = verified.serving();
  *row.mutable_content_digest() = verified.content_digest();
  if (verified.code() != 0) row.set_code(static_cast<int32_t>(CodeFromProto(verified.code())));
  row.set_error(ReasonFrom(verified.error()));
  Add(it, std::move(row));
}

void Verification::Gone(MemberId member, const std::string& why) {
  const auto it = waiting_.find(member);
  if (done() || it == waiting_.end()) return;
  v1::MemberVerification row;
  row.set_code(static_cast<int32_t>(absl::StatusCode::kUnavailable));
  row.set_error(WireText(why));
  Add(it, std::move(row));
}

void Verification::Expire(absl::Time now) {
  while (!done() && now >= deadline_ && !waiting_.empty()) {
    v1::MemberVerification row;
    row.set_code(static_cast<int32_t>(absl::StatusCode::kDeadlineExceeded));
    row.set_error("it has not answered in time");
    Add(waiting_.begin(), std::move(row));
  }
}

void Verification::FinishIfComplete() {
  if (done() || !waiting_.empty()) return;
  std::exchange(reactor_, nullptr)->Finish(grpc::Status::OK);
}

}  // namespace wsync
