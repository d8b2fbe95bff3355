#include "server/rollout/layer_window.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"

namespace wsync {
namespace {

constexpr absl::Duration kCopyTimeout = absl::Seconds(30);  // of one bucket; far more than any device takes

absl::Status WaitFor(const CompletionPtr& work) {
  return work == nullptr ? absl::OkStatus() : work->Wait(MonotonicNow() + kCopyTimeout);
}

OutputScope ScopeOf(const Plan& plan, const std::vector<int64_t>& outputs, std::string not_in) {
  OutputScope scope{std::vector<bool>(plan.outputs().size(), false), std::move(not_in)};
  for (const int64_t output : outputs) scope.in[output] = true;
  return scope;
}

std::string KeyOf(const MemoryHandle& handle) {
  const auto* shared = std::get_if<SharedMemoryHandle>(&handle);
  return shared != nullptr ? shared->name : std::get<CudaIpcHandle>(handle).handle;
}

}  // namespace

OutputScope LayerWindow::StaysOf(const Plan& plan) {
  std::vector<int64_t> outputs;
  for (size_t i = 0; i < plan.outputs().size(); ++i) {
    const std::string& tensor = plan.catalog().tensors()[plan.outputs()[i].tensor].name;
    if (LayerOf(tensor).empty()) outputs.push_back(static_cast<int64_t>(i));
  }
  return ScopeOf(plan, outputs, "it belongs to a layer; with layer_window its memory is asked for when it arrives");
}

absl::StatusOr<std::unique_ptr<LayerWindow>> LayerWindow::Create(Backend& backend, std::shared_ptr<const Plan> plan,
                                                                 Options options) {
  std::unique_ptr<LayerWindow> window(new LayerWindow(backend, std::move(plan), std::move(options)));
  if (absl::Status status = window->schedule_.CheckWindow(window->options_.window); !status.ok()) return status;
  auto loader = window->TakeLoader();  // now, so that a version allocates as little as can be
  if (!loader.ok()) return loader.status();
  window->idle_.push_back(*std::move(loader));
  return window;
}

void LayerWindow::Begin(Engine engine) {
  engine_ = std::move(engine);
  ready_ = 0;
  wrote_ = false;
}

absl::Status LayerWindow::Place(int64_t bucket, const std::byte* wire, Loader& stays) {
  for (const LayerVisit& visit : schedule_.VisitsOf(bucket)) {
    const bool is_layer = !schedule_.stays(visit.layer);
    absl::Status status;
    if (is_layer && visit.first) status = OpenLayer(visit.layer);
    if (status.ok()) {
      Loader& loader = is_layer ? *open_.at(visit.layer).loader : stays;
      wrote_ |= is_layer;
      status = WaitFor(loader.Apply(bucket, wire, nullptr));
    }
    if (!status.ok()) return status;
    if (!visit.last) continue;
    const absl::StatusOr<uint64_t> ticket = is_layer ? CloseLayer(visit.layer) : engine_.loans->CompleteStays();
    if (!ticket.ok()) return ticket.status();
    TellReady(visit.layer, *ticket);
  }
  return absl::OkStatus();
}

absl::Status LayerWindow::OpenLayer(int64_t layer) {
  const std::string& name = schedule_.name(layer);
  auto loan = engine_.loans->Borrow(name, [this, layer, &name](uint64_t ticket) {
    engine_.wanted({.ticket = ticket, .layer = name, .plan = plan_, .outputs = schedule_.outputs(layer)});
  });
  if (!loan.ok()) return loan.status();
  Open open{.ticket = loan->ticket};
  const absl::Status status = Fit(layer, *loan, open);
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat("the memory for layer ", name, ": ", status.message()));
  }
  open_.emplace(layer, std::move(open));
  return absl::OkStatus();
}

absl::Status LayerWindow::Fit(int64_t layer, const LayerLoans::Loan& loan, Open& open) {
  std::vector<int64_t> sizes;
  std::vector<std::byte*> bases;
  for (const MemoryHandle& handle : loan.memory->handles) {
    auto buffer = backend_.memory().Open(handle, Access::kReadWrite);
    if (!buffer.ok()) {
      return absl::Status(buffer.status().code(),
                          absl::StrCat("handle ", open.memory.size(), ": ", buffer.status().message()));
    }
    open.memory.push_back(*std::move(buffer));
    sizes.push_back(open.memory.back()->bytes());
    bases.push_back(open.memory.back()->data());
  }
  const OutputScope scope =
      ScopeOf(*plan_, schedule_.outputs(layer), absl::StrCat("it is no output of ", schedule_.name(layer)));
  auto table = BuildScatterTable(*plan_, loan.memory->destinations, sizes, options_.allow_partial, &scope);
  if (!table.ok()) return table.status();
  if (absl::Status status = CheckApart(loan); !status.ok()) return status;
  auto loader = TakeLoader();
  if (!loader.ok()) return loader.status();
  open.loader = *std::move(loader);
  return open.loader->Retarget(*std::move(table), std::move(bases));
}

// What is lent for a layer must lie apart from everything else that is lent now, or a later layer would land on it.
absl::Status LayerWindow::CheckApart(const LayerLoans::Loan& loan) const {
  std::map<std::string, int32_t> handles;  // of the same memory: the same number
  std::vector<Destination> all;
  const auto add = [&handles, &all](const LayerMemory& memory) {
    for (Destination destination : memory.destinations) {
      const auto next = static_cast<int32_t>(handles.size());
      destination.handle = handles.try_emplace(KeyOf(memory.handles[destination.handle]), next).first->second;
      all.push_back(std::move(destination));
    }
  };
  add(options_.stays);
  for (const auto& memory : loan.beside) add(*memory);
  add(*loan.memory);
  return CheckDisjoint(all);
}

absl::StatusOr<std::unique_ptr<Loader>> LayerWindow::TakeLoader() {
  if (idle_.empty()) return backend_.NewLoader(plan_, {}, {});
  std::unique_ptr<Loader> loader = std::move(idle_.back());
  idle_.pop_back();
  return loader;
}

absl::StatusOr<uint64_t> LayerWindow::CloseLayer(int64_t layer) {
  Open open = std::move(open_.extract(layer).mapped());
  absl::Status status = open.loader->Finish(MonotonicNow() + kCopyTimeout).status();
  if (status.ok()) status = open.loader->Retarget({}, {});
  if (!status.ok()) return status;
  idle_.push_back(std::move(open.loader));
  open.memory.clear();
  engine_.loans->Complete(open.ticket);
  return open.ticket;
}

void LayerWindow::TellReady(int64_t layer, uint64_t ticket) {
  engine_.ready({.name = schedule_.name(layer), .ready = ++ready_, .layers = schedule_.layers(), .ticket = ticket});
}

bool LayerWindow::End() {
  open_.clear();  // loaders first: they wait for what they have started
  engine_ = {};
  return wrote_;
}

}  // namespace wsync
