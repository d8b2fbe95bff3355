#include "client/cli/status_view.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "client/cli/terminal.h"

namespace wsync::cli {
namespace {

// Kinds are states of ours, some ten; a peer of another version may have more of them to say.
constexpr size_t kMaxKinds = 12;
constexpr size_t kMaxKindBytes = 40;
constexpr size_t kMaxEventBytes = 2 << 10;  // some twenty lines of a terminal

struct StateText {
  const char* text;
  Color color;
};

StateText TextOf(v1::SyncState state) {
  switch (state) {
    case v1::SYNC_STATE_IN_SYNC:
      return {"in sync", Color::kGreen};
    case v1::SYNC_STATE_SYNCING:
      return {"syncing", Color::kYellow};
    case v1::SYNC_STATE_DEGRADED:
      return {"degraded", Color::kRed};
    case v1::SYNC_STATE_EMPTY:
      return {"nothing published yet", Color::kDim};
    default:
      return {"unknown", Color::kRed};
  }
}

Color ColorOfMember(const std::string& state) {
  if (state == "ready") return Color::kGreen;
  if (state == "torn" || state == "fenced" || state == "lost") return Color::kRed;
  return Color::kYellow;
}

std::string VersionText(const v1::ServedVersion& served) {
  return served.version() == 0 ? "-" : std::to_string(served.version());
}

std::string Timing(const v1::VersionReport& report) {
  v1::StageTimings slowest;
  for (const v1::ReplicaOutcome& replica : report.replicas()) {
    const v1::StageTimings& t = replica.timings();
    slowest.set_transfer_ms(std::max(slowest.transfer_ms(), t.transfer_ms()));
    slowest.set_check_ms(std::max(slowest.check_ms(), t.check_ms()));
    slowest.set_apply_ms(std::max(slowest.apply_ms(), t.apply_ms()));
    slowest.set_pause_ms(std::max(slowest.pause_ms(), t.pause_ms()));
  }
  return absl::StrCat("encode ", FormatMs(report.encode_ms()), ", transfer ", FormatMs(slowest.transfer_ms()),
                      ", check ", FormatMs(slowest.check_ms()), ", apply ", FormatMs(slowest.apply_ms()), ", pause ",
                      FormatMs(slowest.pause_ms()));
}

// GB/s each sink saw from publish to staged.
std::string Rate(const v1::VersionReport& report) {
  if (report.staged_ms() <= 0 || report.replicas().empty()) return "";
  return absl::StrCat(", ", FormatRate(static_cast<double>(report.payload_bytes()) / report.staged_ms() * 1e3),
                      " to each sink");
}

void AddVersion(const v1::JobStatus& status, const StatusViewOptions& options, Table& out) {
  if (!status.has_last_version()) {
    out.Add({"version", "none"});
    return;
  }
  const v1::VersionReport& report = status.last_version();
  if (report.tensors() == 0) {  // of before the agent's restart
    out.Add(
        {"version", absl::StrCat(report.version(), "  digest ",
                                 options.wide ? HashHex(report.content_digest()) : ShortHash(report.content_digest()),
                                 ", as its members serve it")});
    return;
  }
  out.Add({"version", absl::StrCat(report.version(), "  ", Counted(report.tensors(), "tensor"), ", ",
                                   FormatBytes(static_cast<double>(report.payload_bytes())), ", digest ",
                                   options.wide ? HashHex(report.content_digest()) : ShortHash(report.content_digest()),
                                   ", ", FormatAge(status.last_version_age_s()), " ago")});
  if (report.committed_ms() <= 0) return;
  out.Add({"last sync", absl::StrCat(FormatMs(report.committed_ms()), " (released after ",
                                     FormatMs(report.released_ms()), ")", Rate(report))});
  out.Add({"stages", Timing(report)});
}

void AddCatalog(const v1::JobStatus& status, Table& out) {
  const v1::CatalogStatus& catalog = status.catalog();
  if (!catalog.registered()) {
    out.Add({"catalog", "no trainer registered"});
    return;
  }
  out.Add({"catalog", absl::StrCat(Counted(catalog.tensors(), "tensor"), ", ", FormatCount(catalog.quantized_tensors()),
                                   " quantized, ", FormatBytes(static_cast<double>(catalog.source_bytes())), " -> ",
                                   FormatBytes(static_cast<double>(catalog.payload_bytes())), " in ",
                                   Counted(catalog.buckets(), "bucket"))});
}

std::string Phase(const v1::MemberStatus& member) {
  if (member.state() != "syncing") return "-";
  if (member.phase() == "receive") return absl::StrFormat("receive %.0f%%", member.received_fraction() * 100);
  return member.phase();
}

// A member's row, as one of many.
struct MemberRow {
  std::vector<Cell> cells;
  int rank = 0;      // where not all are shown, the lowest are
  std::string kind;  // as those that are not shown are counted
};

// At most `most` rows: those of the lowest ranks, in the order that they have, and how many of which kind come after.
// `omitted`: members that the coordinator's answer had no room for.
std::string RenderRows(Table table, std::vector<MemberRow> rows, size_t most, uint64_t omitted, bool color) {
  if (rows.empty()) return "no members\n";
  if (rows.size() > most) {
    std::stable_sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.rank < b.rank; });
  }
  std::map<std::string, int64_t> left_out;
  for (MemberRow& row : rows) {
    if (most > 0) {
      table.Add(std::move(row.cells));
      --most;
    } else {
      ++left_out[row.kind];
    }
  }
  std::string out = table.Render(color);
  const std::string unheard =
      omitted == 0 ? "" : absl::StrCat("and ", FormatCount(omitted), " more that one answer has no room for\n");
  if (left_out.empty()) return out + unheard;
  int64_t count = 0;
  std::vector<std::string> kinds;
  for (const auto& [kind, members] : left_out) {
    count += members;
    if (kinds.size() < kMaxKinds)
      kinds.push_back(absl::StrCat(FormatCount(members), " ", Printable(kind, kMaxKindBytes)));
  }
  return absl::StrCat(out, "and ", FormatCount(count), " more: ", absl::StrJoin(kinds, ", "),
                      left_out.size() > kMaxKinds ? ", and others" : "", " ('wsync status -o json' has them all)\n",
                      unheard);
}

std::string Members(const v1::JobStatus& status, const StatusViewOptions& options) {
  std::vector<std::string> header = {"MEMBER", "ROLE", "STATE", "SERVING", "LAG", "PHASE", "SEEN"};
  if (options.wide) header.insert(header.end(), {"DIGEST", "REPLICA", "RANK", "ENGINE", "BACKEND", "HOST", "PID"});
  header.push_back("LAST ERROR");
  Table table(header);
  table.AlignRight(3);
  table.AlignRight(4);
  table.AlignRight(6);
  std::vector<MemberRow> rows;
  for (const v1::MemberStatus& m : status.members()) {
    std::vector<Cell> row = {m.name(),
                             m.role(),
                             {m.state(), ColorOfMember(m.state())},
                             VersionText(m.serving()),
                             m.role() == "trainer" || m.serving().version() == 0 ? "-" : std::to_string(m.lag()),
                             Phase(m),
                             FormatAge(m.last_seen_s())};
    if (options.wide) {
      row.insert(row.end(), {ShortHash(m.serving().content_digest()), m.replica(), std::to_string(m.rank()), m.engine(),
                             m.backend(), m.host(), m.pid() == 0 ? "-" : std::to_string(m.pid())});
    }
    row.push_back(m.last_error().empty() ? "-" : m.last_error());
    const bool well = m.state() == "ready" && m.lag() == 0 && m.last_error().empty();
    rows.push_back({std::move(row), m.role() == "trainer" ? 0 : well ? 2 : 1, m.state()});
  }
  return RenderRows(std::move(table), std::move(rows), options.max_members, status.members_omitted(), options.color);
}

std::string Events(const v1::JobStatus& status, const StatusViewOptions& options) {
  std::string out;
  const int first = std::max(0, status.events_size() - options.max_events);
  for (int i = first; i < status.events_size(); ++i) {
    const v1::StatusEvent& event = status.events(i);
    const Color color = event.severity() == "error"  ? Color::kRed
                        : event.severity() == "warn" ? Color::kYellow
                                                     : Color::kNone;
    absl::StrAppend(&out,
                    Paint(absl::FormatTime("%H:%M:%S", absl::FromUnixMillis(event.unix_ms()), absl::LocalTimeZone()),
                          Color::kDim, options.color),
                    "  ", Paint(Printable(event.text(), kMaxEventBytes), color, options.color), "\n");
  }
  return out;
}

void MakeReadable(const google::protobuf::Descriptor& type, nlohmann::ordered_json& object);

// One value of a field, as programs want it: protobuf's JSON has 64-bit numbers as texts, which jq takes for more than
// any number, and a digest as two of them, which could be compared with nothing that tables print.
void MakeReadable(const google::protobuf::FieldDescriptor& field, nlohmann::ordered_json& value) {
  using Field = google::protobuf::FieldDescriptor;
  if (field.cpp_type() == Field::CPPTYPE_INT64 && value.is_string()) {
    value = std::stoll(value.get<std::string>());
  } else if (field.cpp_type() == Field::CPPTYPE_UINT64 && value.is_string()) {
    value = std::stoull(value.get<std::string>());
  } else if (field.cpp_type() == Field::CPPTYPE_MESSAGE && value.is_object()) {
    MakeReadable(*field.message_type(), value);
    if (field.message_type() != v1::Hash::descriptor()) return;
    v1::Hash hash;
    hash.set_high(value["high"].get<uint64_t>());
    hash.set_low(value["low"].get<uint64_t>());
    value = HashHex(hash);
  }
}

void MakeReadable(const google::protobuf::Descriptor& type, nlohmann::ordered_json& object) {
  for (int i = 0; i < type.field_count(); ++i) {
    const google::protobuf::FieldDescriptor& field = *type.field(i);
    if (!object.contains(field.name())) continue;
    auto& value = object[field.name()];
    if (!field.is_repeated()) {
      MakeReadable(field, value);
    } else {
      for (auto& element : value) MakeReadable(field, element);
    }
  }
}

}  // namespace

std::string HashHex(const v1::Hash& hash) { return absl::StrFormat("%016x%016x", hash.high(), hash.low()); }

std::string ShortHash(const v1::Hash& hash) {
  return hash.high() == 0 && hash.low() == 0 ? "-" : HashHex(hash).substr(0, 12);
}

std::string RenderStatus(const v1::JobStatus& status, const StatusViewOptions& options) {
  const StateText state = TextOf(status.state());
  std::string out = absl::StrCat(Paint(status.job(), Color::kBold, options.color), "  ",
                                 Paint(state.text, state.color, options.color));
  if (!status.reason().empty()) absl::StrAppend(&out, ": ", Printable(status.reason()));
  absl::StrAppend(&out, "\n\n");
  Table facts({"", ""});
  facts.Add(
      {"epoch", absl::StrCat(status.epoch(), "  policy ", status.policy(), ", min replicas ", status.min_replicas(),
                             ", backend ", status.backend(), ", up ", FormatAge(status.uptime_s()))});
  AddCatalog(status, facts);
  AddVersion(status, options, facts);
  if (status.has_round()) {
    facts.Add(
        {"running", absl::StrCat("version ", status.round().version(), status.round().catch_up() ? " (catch-up)" : "",
                                 ", ", status.round().phase(), ", ", FormatAge(status.round().age_s()))});
  }
  std::string fact_text = facts.Render(false);
  fact_text.erase(0, fact_text.find('\n') + 1);  // the facts need no header
  absl::StrAppend(&out, fact_text, "\n", Members(status, options));
  const std::string events = Events(status, options);
  if (!events.empty()) absl::StrAppend(&out, "\n", Paint("RECENT EVENTS", Color::kBold, options.color), "\n", events);
  return out;
}

std::string StatusJson(const v1::JobStatus& status) {
  google::protobuf::util::JsonPrintOptions print;
  print.always_print_primitive_fields = true;
  print.preserve_proto_field_names = true;
  std::string json;
  const auto result = google::protobuf::util::MessageToJsonString(status, &json, print);
  nlohmann::ordered_json document;
  if (result.ok()) {
    document = nlohmann::ordered_json::parse(json);
    MakeReadable(*v1::JobStatus::descriptor(), document);
  } else {
    document = {{"error", std::string(result.message())}};
  }
  return PrintableJson(document.dump(2, ' ', false, nlohmann::json::error_handler_t::replace)) + "\n";
}

ExitCode StatusExit(const v1::JobStatus& status) { return status.state() == v1::SYNC_STATE_DEGRADED ? kDegraded : kOk; }

std::string RenderVerify(const v1::JobStatus& status, bool color, bool* agree) {
  const v1::Hash& want = status.last_version().content_digest();
  Table table({"MEMBER", "SERVING", "CONTENT DIGEST", "VERDICT"});
  table.AlignRight(1);
  std::vector<MemberRow> rows;
  *agree = status.has_last_version() && status.members_omitted() == 0;
  for (const v1::MemberStatus& m : status.members()) {
    const v1::Hash& got = m.serving().content_digest();
    const bool same = m.serving().version() != 0 && m.serving().version() == status.last_version().version() &&
                      got.high() == want.high() && got.low() == want.low() && m.state() != "torn" &&
                      m.state() != "lost";
    if (!same) *agree = false;
    const Cell verdict = same                         ? Cell("equal", Color::kGreen)
                         : m.serving().version() == 0 ? Cell("serves nothing", Color::kRed)
                         : m.state() == "torn"        ? Cell("torn", Color::kRed)
                         : m.state() == "lost"        ? Cell("lost", Color::kRed)
                         : m.state() == "fenced"      ? Cell("fenced", Color::kRed)
                         : m.lag() > 0                ? Cell("behind", Color::kYellow)
                                                      : Cell("DIFFERENT", Color::kRed);
    rows.push_back({{m.name(), VersionText(m.serving()), m.serving().version() == 0 ? "-" : HashHex(got), verdict},
                    same ? 1 : 0,
                    verdict.text});
  }
  return RenderRows(std::move(table), std::move(rows), kMaxMembersShown, status.members_omitted(), color);
}

std::string RenderDeepVerify(const v1::JobStatus& status, const v1::VerifyReply& reply, bool color, bool* agree) {
  const v1::ServedVersion want = [&status] {
    v1::ServedVersion version;
    version.set_version(status.last_version().version());
    *version.mutable_content_digest() = status.last_version().content_digest();
    return version;
  }();
  const auto equal = [](const v1::Hash& a, const v1::Hash& b) { return a.high() == b.high() && a.low() == b.low(); };
  Table table({"MEMBER", "SERVING", "LIVE DIGEST", "VERDICT"});
  table.AlignRight(1);
  std::vector<MemberRow> rows;
  *agree = status.has_last_version() && reply.members_omitted() == 0;
  for (const v1::MemberVerification& m : reply.members()) {
    const bool same =
        m.code() == 0 && m.serving().version() == want.version() && equal(m.content_digest(), want.content_digest());
    if (!same) *agree = false;
    const bool corrupt = m.code() == static_cast<int>(absl::StatusCode::kDataLoss);
    const Cell verdict = same                                     ? Cell("equal", Color::kGreen)
                         : corrupt                                ? Cell("CORRUPT: " + m.error(), Color::kRed)
                         : m.code() != 0                          ? Cell(m.error(), Color::kYellow)
                         : m.serving().version() < want.version() ? Cell("behind", Color::kYellow)
                                                                  : Cell("DIFFERENT", Color::kRed);
    const std::string kind = corrupt ? "CORRUPT" : m.code() != 0 ? "not checked" : verdict.text;
    rows.push_back({{m.name(), VersionText(m.serving()), m.code() == 0 ? HashHex(m.content_digest()) : "-", verdict},
                    same ? 1 : 0,
                    kind});
  }
  return RenderRows(std::move(table), std::move(rows), kMaxMembersShown, reply.members_omitted(), color);
}

}  // namespace wsync::cli
