#include "tests/system/system_testing.h"

#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "absl/strings/str_cat.h"

namespace wsync::cli {

void System::Start(int rollouts, ConfigFlags trainer_flags, ConfigFlags rollout_flags) {
  LocalCluster::Options options;
  options.rollouts = rollouts;
  options.trainer_flags = std::move(trainer_flags);
  options.trainer_flags.emplace_back("transfer.bucket_bytes", "64KiB");
  options.rollout_flags = std::move(rollout_flags);
  auto cluster = LocalCluster::Start(std::move(options));
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  cluster_ = *std::move(cluster);
  for (int i = 0; i < rollouts; ++i) {
    engines_.push_back(std::make_unique<EngineThread>(absl::StrCat("engine ", i), cluster_->rollout_socket(i)));
  }
  auto trainer = TrainerClient::Connect(cluster_->trainer_socket(), absl::Seconds(20));
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  trainer_ = *std::move(trainer);
}

void System::RegisterModel(int ready) {
  auto model = SharedModel::Create(SmallModel(), "test model");
  ASSERT_TRUE(model.ok()) << model.status();
  model_ = std::make_unique<SharedModel>(*std::move(model));
  FillRandom(*model_, 7);
  const auto reply = model_->Register(*trainer_, {}, false);
  ASSERT_TRUE(reply.ok()) << reply.status();
  WaitFor([ready](const v1::JobStatus& s) { return ReadyRollouts(s) == ready; }, "rollouts ready");
}

System::Run System::Wsync(const std::string& arguments) {
  const std::string binary = std::filesystem::read_symlink("/proc/self/exe").parent_path().string() + "/wsync";
  std::FILE* pipe = popen(absl::StrCat(binary, " ", arguments, " 2>&1 </dev/null").c_str(), "r");
  std::string output;
  std::array<char, 4096> buffer;
  for (size_t n = 0; (n = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) output.append(buffer.data(), n);
  const int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), output};
}

v1::JobStatus System::WaitFor(const std::function<bool(const v1::JobStatus&)>& done, const std::string& what) {
  const auto status = cluster_->WaitFor(done, kPatience, what);
  EXPECT_TRUE(status.ok()) << status.status();
  return status.ok() ? *status : v1::JobStatus();
}

int System::ReadyRollouts(const v1::JobStatus& status) {
  return static_cast<int>(
      std::count_if(status.members().begin(), status.members().end(),
                    [](const v1::MemberStatus& m) { return m.role() == "rollout" && m.state() == "ready"; }));
}

const v1::MemberStatus* System::Member(const v1::JobStatus& status, const std::string& name) {
  for (const v1::MemberStatus& member : status.members()) {
    if (member.name() == name) return &member;
  }
  return nullptr;
}

}  // namespace wsync::cli
