// A TCP proxy that makes a connection slow, deaf or dead: what the netem queue would do where there is one.
//
// Own threads; every setting takes effect at once, for the connections that are there as well. Thread-safe.
#ifndef WSYNC_TESTS_FAULTS_PROXY_H_
#define WSYNC_TESTS_FAULTS_PROXY_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/core/sync.h"

namespace wsync::faults {

class Proxy {
 public:
  // Listens on a free port of `host`, and connects to `target` ("host:port") for everybody who comes.
  static absl::StatusOr<std::unique_ptr<Proxy>> Start(const std::string& host, const std::string& target);
  ~Proxy();

  const std::string& address() const { return address_; }
  void Delay(absl::Duration each_way) { delay_us_ = absl::ToInt64Microseconds(each_way); }
  void Swallow(bool swallow) { swallow_ = swallow; }  // takes bytes and passes none on, and says nothing: half-open
  void ResetAll();                                    // RST to both ends of every connection
  int64_t passed_bytes() const { return passed_; }

 private:
  struct Link {
    int near, far;
    std::atomic<bool> over{false};
    std::vector<std::thread> threads;
  };
  Proxy(int listener, std::string address, std::string target);
  void Accept();
  void Pump(Link* link, int from, int to);

  const int listener_;
  const std::string address_;
  const std::string target_;
  std::atomic<int64_t> delay_us_{0};
  std::atomic<bool> swallow_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<int64_t> passed_{0};
  Mutex mu_;
  std::vector<std::unique_ptr<Link>> links_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

// A TCP connection to "host:port"; -1 if there is none within a second.
int ConnectTcp(const std::string& address);

}  // namespace wsync::faults

#endif  // WSYNC_TESTS_FAULTS_PROXY_H_
