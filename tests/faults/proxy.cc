#include "tests/faults/proxy.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"

namespace wsync::faults {
namespace {

constexpr int kPollMs = 5;

sockaddr_in AddressOf(const std::string& text) {
  const size_t colon = text.rfind(':');
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(std::atoi(text.c_str() + colon + 1)));
  inet_pton(AF_INET, text.substr(0, colon).c_str(), &address.sin_addr);
  return address;
}

// The next close sends RST.
void MakeAbrupt(int fd) {
  const linger abrupt{1, 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &abrupt, sizeof(abrupt));
}

struct Chunk {
  absl::Time due;
  std::vector<char> bytes;
};

}  // namespace

int ConnectTcp(const std::string& text) {
  const sockaddr_in address = AddressOf(text);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const timeval patience{1, 0};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
    const timeval none{0, 0};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof(none));
    return fd;
  }
  close(fd);
  return -1;
}

absl::StatusOr<std::unique_ptr<Proxy>> Proxy::Start(const std::string& host, const std::string& target) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = AddressOf(host + ":0");
  socklen_t size = sizeof(address);
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(fd, 64) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    close(fd);
    return absl::InternalError("the proxy cannot listen on " + host);
  }
  return std::unique_ptr<Proxy>(new Proxy(fd, absl::StrCat(host, ":", ntohs(address.sin_port)), target));
}

Proxy::Proxy(int listener, std::string address, std::string target)
    : listener_(listener), address_(std::move(address)), target_(std::move(target)), thread_([this] { Accept(); }) {}

Proxy::~Proxy() {
  stopping_ = true;
  thread_.join();
  std::vector<std::unique_ptr<Link>> links;
  {
    MutexLock lock(&mu_);
    links.swap(links_);
  }
  for (const auto& link : links) {
    for (std::thread& thread : link->threads) thread.join();
    close(link->near);
    close(link->far);
  }
  close(listener_);
}

void Proxy::Accept() {
  while (!stopping_) {
    pollfd coming{listener_, POLLIN, 0};
    if (poll(&coming, 1, kPollMs) <= 0) continue;
    const int near = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (near < 0) continue;
    const int far = ConnectTcp(target_);
    if (far < 0) {
      close(near);
      continue;
    }
    auto link = std::make_unique<Link>();
    link->near = near;
    link->far = far;
    Link* raw = link.get();
    link->threads.emplace_back([this, raw] { Pump(raw, raw->near, raw->far); });
    link->threads.emplace_back([this, raw] { Pump(raw, raw->far, raw->near); });
    MutexLock lock(&mu_);
    links_.push_back(std::move(link));
  }
}

// One direction. What came waits for its time in a queue of its own, so that delay does not cost throughput.
void Proxy::Pump(Link* link, int from, int to) {
  std::deque<Chunk> queue;
  while (!stopping_ && !link->over) {
    pollfd readable{from, POLLIN, 0};
    const int wait = queue.empty() ? kPollMs : 1;
    if (poll(&readable, 1, wait) > 0) {
      Chunk chunk{MonotonicNow() + absl::Microseconds(delay_us_.load()), std::vector<char>(64 << 10)};
      const ssize_t got = recv(from, chunk.bytes.data(), chunk.bytes.size(), MSG_DONTWAIT);
      if (got == 0 || (got < 0 && errno != EAGAIN)) break;
      if (got > 0) {
        chunk.bytes.resize(static_cast<size_t>(got));
        if (!swallow_) queue.push_back(std::move(chunk));
      }
    }
    while (!queue.empty() && queue.front().due <= MonotonicNow() && !link->over) {
      const std::vector<char>& bytes = queue.front().bytes;
      if (send(to, bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0) {
        link->over = true;
        break;
      }
      passed_ += static_cast<int64_t>(bytes.size());
      queue.pop_front();
    }
  }
  link->over = true;
  shutdown(to, SHUT_RDWR);
}

void Proxy::ResetAll() {
  std::vector<std::unique_ptr<Link>> links;
  {
    MutexLock lock(&mu_);
    links.swap(links_);
  }
  for (const auto& link : links) {
    MakeAbrupt(link->near);
    MakeAbrupt(link->far);
    link->over = true;
    // The pumps shut down what they have; closing with the linger sends RST where that was not done yet.
    for (std::thread& thread : link->threads) thread.join();
    close(link->near);
    close(link->far);
  }
}

}  // namespace wsync::faults
