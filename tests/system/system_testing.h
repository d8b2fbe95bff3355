// A small model, a cluster of real daemons and engines: what every system test starts from.
#ifndef WSYNC_TESTS_SYSTEM_SYSTEM_TESTING_H_
#define WSYNC_TESTS_SYSTEM_SYSTEM_TESTING_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "client/cli/demo_model.h"
#include "client/cli/engine_thread.h"
#include "client/cli/local_cluster.h"
#include "client/cli/shared_model.h"
#include "client/local/trainer_client.h"
#include "tests/system/small_model.h"

namespace wsync::cli {

inline constexpr absl::Duration kPatience = absl::Seconds(60);  // sanitizer builds on two busy cores

class System : public ::testing::Test {
 protected:
  void Start(int rollouts, ConfigFlags trainer_flags = {}, ConfigFlags rollout_flags = {});
  // Registers SmallModel() with random weights and waits until `ready` rollouts are.
  void RegisterModel(int ready);
  absl::StatusOr<v1::VersionReport> Publish(uint64_t version) { return trainer_->Publish(version, PublishObserver()); }
  // Runs the wsync command; stdout and stderr in one text.
  struct Run {
    int exit_code;
    std::string output;
  };
  Run Wsync(const std::string& arguments);
  // Status once `done` holds; fails the test if it never does.
  v1::JobStatus WaitFor(const std::function<bool(const v1::JobStatus&)>& done, const std::string& what);
  static int ReadyRollouts(const v1::JobStatus& status);
  static const v1::MemberStatus* Member(const v1::JobStatus& status, const std::string& name);

  std::unique_ptr<LocalCluster> cluster_;
  std::unique_ptr<SharedModel> model_;
  std::unique_ptr<TrainerClient> trainer_;
  std::vector<std::unique_ptr<EngineThread>> engines_;
};

}  // namespace wsync::cli

#endif  // WSYNC_TESTS_SYSTEM_SYSTEM_TESTING_H_
