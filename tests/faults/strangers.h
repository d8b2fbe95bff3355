// Who finds a port and talks to it: scrapers, scanners, port probes. And which ports a process has open for them.
#ifndef WSYNC_TESTS_FAULTS_STRANGERS_H_
#define WSYNC_TESTS_FAULTS_STRANGERS_H_

#include <sys/types.h>

#include <string>
#include <vector>

namespace wsync::faults {

// What they say first.
const std::vector<std::string>& Greetings();
// Where the process listens on TCP now, each as somebody on this host reaches it: "127.0.0.1:7470".
std::vector<std::string> ListeningAddresses(pid_t pid);
// Says every greeting at the address, each `times` times, and reads nothing. The connections stay open until the caller
// closes them.
void Greet(const std::string& address, int times, std::vector<int>* connections);

}  // namespace wsync::faults

#endif  // WSYNC_TESTS_FAULTS_STRANGERS_H_
