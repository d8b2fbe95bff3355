// One `wsync verify --deep`: asks every member to digest again what its engine's memory holds, and collects the
// answers.
//
// Lives on the control thread. Answers the call once: when all have answered or are gone, or at its deadline.
#ifndef WSYNC_SERVER_TRAINER_VERIFICATION_H_
#define WSYNC_SERVER_TRAINER_VERIFICATION_H_

#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/events.h"
#include "server/rpc/message_budget.h"
#include "wsync/v1/coordinator.pb.h"

namespace wsync {

class Verification {
 public:
  // `members`: who is asked, and their names. Both pointers are gRPC's and valid until the answer.
  Verification(std::map<MemberId, std::string> members, absl::Time deadline, grpc::ServerUnaryReactor* reactor,
               v1::VerifyReply* reply);
  ~Verification();  // answers, if it was not yet

  void Answer(MemberId member, const v1::Verified& verified);
  void Gone(MemberId member, const std::string& why);
  // At the deadline those who are missing are said to be late.
  void Expire(absl::Time now);
  bool done() const { return reactor_ == nullptr; }
  absl::Time deadline() const { return deadline_; }

 private:
  void Add(std::map<MemberId, std::string>::iterator member, v1::MemberVerification row);
  void FinishIfComplete();

  std::map<MemberId, std::string> waiting_;
  MessageBudget budget_{kMemberListBytes};
  const absl::Time deadline_;
  grpc::ServerUnaryReactor* reactor_;
  v1::VerifyReply* const reply_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_VERIFICATION_H_
