#include "server/backend/host/session_registry.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"

namespace wsync::host {
namespace {

// Takes as long for a wrong token as for the right one: its time tells nothing about how much of it was right.
bool SameToken(const std::string& a, const std::string& b) {
  if (a.size() != b.size()) return false;
  unsigned char difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

}  // namespace

absl::Status SessionRegistry::Found::Admit(int32_t asked, const std::shared_ptr<SinkStream>& stream) const {
  if (rank == 0 || rank == asked) return session->Admit(asked, stream);
  return absl::PermissionDeniedError(absl::StrCat("data plane: the token is not that of rank ", asked));
}

SessionRegistry::Found SessionRegistry::Find(const std::string& token) {
  Found found;
  for (const Entry& entry : sessions_) {
    for (const Key& key : entry.keys) {
      if (SameToken(key.token, token)) found = {entry.session, key.rank};
    }
  }
  return found;
}

absl::Status SessionRegistry::Register(std::vector<Key> keys, std::shared_ptr<SourceSession> session) {
  std::list<std::pair<Parked, Found>> arrived;
  {
    MutexLock lock(&mu_);
    for (const Key& key : keys) {
      if (Find(key.token).session != nullptr)
        return absl::AlreadyExistsError("data plane: a session with this token is open already");
    }
    sessions_.push_back({std::move(keys), std::move(session)});
    for (auto it = parked_.begin(); it != parked_.end();) {
      const Found found = Find(it->token);
      const auto next = std::next(it);
      if (found.session != nullptr) {
        arrived.emplace_back(std::move(*it), found);
        parked_.erase(it);
      }
      it = next;
    }
  }
  for (const auto& [parked, found] : arrived) {
    if (absl::Status status = found.Admit(parked.rank, parked.stream); !status.ok()) parked.stream->End(status);
  }
  return absl::OkStatus();
}

void SessionRegistry::Unregister(const std::shared_ptr<SourceSession>& session) {
  MutexLock lock(&mu_);
  std::erase_if(sessions_, [&](const Entry& entry) { return entry.session == session; });
}

void SessionRegistry::Admit(const std::string& token, int32_t rank, std::shared_ptr<SinkStream> stream) {
  Found found;
  {
    MutexLock lock(&mu_);
    found = Find(token);
  }
  // A session registered between the look and the parking finds the call among the parked: Park looks again.
  const absl::Status status = found.session != nullptr ? found.Admit(rank, stream) : Park(token, rank, stream);
  if (!status.ok()) stream->End(status);
}

absl::Status SessionRegistry::Park(const std::string& token, int32_t rank, std::shared_ptr<SinkStream> stream) {
  const auto alarm = std::make_shared<grpc::Alarm>();
  std::list<Parked> ended, crowded_out;  // destroyed after the lock: alarms and streams are gRPC's
  Found found;
  {
    MutexLock lock(&mu_);
    for (auto it = parked_.begin(); it != parked_.end();) {
      const auto next = std::next(it);
      if (it->stream->ended()) ended.splice(ended.end(), parked_, it);
      it = next;
    }
    found = Find(token);
    if (found.session == nullptr) {
      if (parked_.size() >= kMaxParkedCalls) crowded_out.splice(crowded_out.end(), parked_, parked_.begin());
      parked_.push_back({token, rank, stream, alarm});
    }
  }
  for (const Parked& oldest : crowded_out) {
    oldest.stream->End(absl::ResourceExhaustedError(
        absl::StrCat("data plane: ", kMaxParkedCalls, " calls wait for sessions that do not exist yet; try again")));
  }
  if (found.session != nullptr) return found.Admit(rank, stream);
  SetAlarm(alarm, stream);
  return absl::OkStatus();
}

void SessionRegistry::SetAlarm(const std::shared_ptr<grpc::Alarm>& alarm, const std::shared_ptr<SinkStream>& stream) {
  const auto deadline = std::chrono::system_clock::now() + absl::ToChronoMilliseconds(patience_);
  alarm->Set(deadline, [self = weak_from_this(), weak_stream = std::weak_ptr(stream)](bool expired) {
    const auto registry = self.lock();
    const auto parked = weak_stream.lock();
    if (expired && registry != nullptr && parked != nullptr) registry->Expire(parked);
  });
}

void SessionRegistry::Expire(const std::shared_ptr<SinkStream>& stream) {
  std::list<Parked> expired;
  {
    MutexLock lock(&mu_);
    const auto it = std::find_if(parked_.begin(), parked_.end(), [&](const Parked& p) { return p.stream == stream; });
    if (it == parked_.end()) return;
    expired.splice(expired.end(), parked_, it);
  }
  stream->End(absl::NotFoundError("data plane: no session has this token; it is over, or the token is wrong"));
}

}  // namespace wsync::host
