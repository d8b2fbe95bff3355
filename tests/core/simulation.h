// The commit protocol under faults, on a virtual clock: the real Coordinator, and simulated sinks, source and trainer
// behind links that delay, reorder and lose what they carry. Everything random comes from one seed, so a seed is a run.
//
// The rules of the protocol are checked after every step (simulation_checker.h); the first one broken ends the run.
#ifndef WSYNC_TESTS_CORE_SIMULATION_H_
#define WSYNC_TESTS_CORE_SIMULATION_H_

#include <cstdint>
#include <string>

namespace wsync::sim {

struct Options {
  uint64_t seed = 1;
  int publishes = 50;         // answered ones, before faults stop
  bool liar = false;          // one sink, always the same way; the others are honest, and crash at most
  bool keep_history = false;  // costs time: for the second run of a seed that failed
};

// How often things happened: a simulation in which they do not happen proves nothing.
struct Counts {
  int64_t steps = 0;
  int64_t publishes = 0;
  int64_t commits = 0;    // versions
  int64_t failures = 0;   // publishes answered with an error
  int64_t repeats = 0;    // answered 'already committed'
  int64_t restarts = 0;   // epochs that sent a version again
  int64_t catch_ups = 0;  // sinks brought to a version that was committed before
  int64_t left_out = 0;   // replicas, in reports
  int64_t torn = 0;       // same
  int64_t lost = 0;       // members declared lost
  int64_t coordinator_lives = 0;
  int64_t kept_sessions = 0;   // rounds that went on in the session of the one before
  int64_t stale_messages = 0;  // of a former epoch, delivered to the coordinator
  int64_t repeated_messages = 0;
  int64_t hang_ups = 0;        // of a trainer, on a version that was not released
  int64_t engines_lost = 0;    // in the middle of a version
  int64_t staged_engines = 0;  // of these where everything was staged
  int64_t declined = 0;        // begins, by a sink without an engine
  int64_t fenced = 0;          // liars, at the end
  int64_t cost = 0;            // publishes that failed or were held up by a liar, where nothing else went wrong
  Counts& operator+=(const Counts& other);
};

struct Result {
  std::string violation;     // empty: every rule held
  std::string history;       // what happened, one line each, if kept
  uint64_t fingerprint = 0;  // equal for equal runs
  Counts counts;
};

Result Simulate(const Options& options);

}  // namespace wsync::sim

#endif  // WSYNC_TESTS_CORE_SIMULATION_H_
