// A publisher over a backend that the test controls, and a record of what it reports.
#ifndef WSYNC_TESTS_TRAINER_PUBLISHER_TESTING_H_
#define WSYNC_TESTS_TRAINER_PUBLISHER_TESTING_H_

#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/trainer/publisher.h"
#include "tests/trainer/fake_backend.h"
#include "tests/trainer/testing.h"

namespace wsync {

class PublisherTest : public ::testing::Test {
 protected:
  using Kind = FakeBackend::Operation::Kind;
  static constexpr int kBuckets = 5;

  void Open(SourceMode mode, PublisherOptions options = {}) {
    options.mode = mode;
    options.ring_slots = 2;
    publisher_ =
        std::make_unique<Publisher>(options, &backend_, [this](Event event) { events_.Add(std::move(event)); });
    ASSERT_TRUE(publisher_->Adopt(TestRegistration(backend_, kBuckets)).ok());
    weights_ = backend_.Lend("/weights", kBuckets * kTestTensorBytes);
  }
  void Start(uint64_t epoch, uint64_t version, bool encode, int32_t world = 3) {
    publisher_->Start({epoch, version, absl::StrCat("token-", epoch), world, encode});
  }
  static std::shared_ptr<StreamOrder> OrderAfter(const std::string& event) {
    return std::make_shared<StreamOrder>(EventHandle{event, FakeClientEvents::kUuid});
  }
  // A publish after `after_` of the training process's stream.
  std::shared_ptr<StreamOrder> Order() {
    after_ = backend_.LendEvent("after");
    return OrderAfter("after");
  }
  void Start(uint64_t epoch, uint64_t version, std::shared_ptr<StreamOrder> order) {
    publisher_->Start({epoch, version, absl::StrCat("token-", epoch), 3, true}, std::move(order));
  }
  void Cancel(uint64_t epoch, bool drop) {
    publisher_->Cancel({epoch, absl::CancelledError("the coordinator says so"), drop});
  }
  // Returns once everything asked for before has been dealt with.
  Hash128 Flush() {
    const size_t before = events_.Count<event::ContentChecked>();
    publisher_->CheckContent({999});
    return events_.Await<event::ContentChecked>(before).digest;
  }

  FakeBackend backend_;
  EventRecord events_;
  std::byte* weights_ = nullptr;
  std::shared_ptr<FakeClientEvent> after_;
  std::unique_ptr<Publisher> publisher_;
};

}  // namespace wsync

#endif  // WSYNC_TESTS_TRAINER_PUBLISHER_TESTING_H_
