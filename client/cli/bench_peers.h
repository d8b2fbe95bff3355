// The two client processes of `wsync bench --backend cuda`: a feeder in the place of a training process, and an engine
// that decodes nothing. Each is a process, holds its memory on one GPU, and uses what a user would have: the local API
// and CUDA IPC. They take orders and answer as PeerProcess says.
#ifndef WSYNC_CLIENT_CLI_BENCH_PEERS_H_
#define WSYNC_CLIENT_CLI_BENCH_PEERS_H_

#include <CLI/CLI.hpp>

namespace wsync::cli {

// `wsync bench-feeder`: registers a model's weights, then publishes as ordered.
//   says {"registered": {tensors, quantized_tensors, source_bytes, payload_bytes, wire_bytes, buckets, ms}}
//   "publish V" -> {"committed": V, begun_at_ms, released_ms, committed_ms, report: {...}}
// `wsync bench-engine`: attaches memory for every output.
//   says {"attached": {bytes, ms}}, then for every version {"applied": V, at_ms, pause_ms, timings: {...}}
// `..._at_ms` and `at_ms` are points in time on the clock that all processes of a host have (MonotonicNow).
// Both say {"error": text} when they give up, and end when their stdin does. Hidden from --help.
void AddBenchPeers(CLI::App& app);

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_BENCH_PEERS_H_
