#include "server/trainer/register_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/rpc/convert.h"
#include "server/rpc/whole_stream.h"

namespace wsync {
namespace {

// What a registration may take before it is checked: names are all that grows, and 1 GiB of them is 250 bytes for each
// of kMaxTensors.
constexpr size_t kMaxNamesBytes = size_t{1} << 30;

}  // namespace

RegisterCall::RegisterCall(grpc::CallbackServerContext* context, v1::RegisterReply* reply, Registrar* registrar,
                           CallLimit* limit)
    : context_(context), reply_(reply), registrar_(registrar), place_(limit) {
  place_.status().ok() ? StartRead(&message_) : Finish(ToGrpc(place_.status()));
}

void RegisterCall::OnReadDone(bool ok) {
  if (!ok) return Decide();  // the same for "that was all" and "the caller is gone"
  if (absl::Status status = Take(message_); !status.ok()) return Finish(ToGrpc(status));
  StartRead(&message_);
}

absl::Status RegisterCall::Take(const v1::RegisterRequest& message) {
  if (message.has_header() == has_header_) {
    return absl::InvalidArgumentError("a registration has one header, in its first message");
  }
  if (message.has_header()) {
    if (absl::Status status = TakeHeader(message.header()); !status.ok()) return status;
  }
  if (static_cast<int64_t>(request_.tensors.size()) + message.tensors_size() > kMaxTensors) {
    return absl::InvalidArgumentError(absl::StrCat("more than ", kMaxTensors, " tensors cannot be registered"));
  }
  for (const v1::RegisteredTensor& registered : message.tensors()) {
    auto tensor = FromProto(registered.tensor());
    if (!tensor.ok()) return tensor.status();
    name_bytes_ += tensor->name.size();
    request_.tensors.push_back(*std::move(tensor));
    request_.places.push_back({registered.handle(), registered.offset_bytes()});
  }
  if (name_bytes_ > kMaxNamesBytes) {
    return absl::InvalidArgumentError("the tensors' names take more than 1 GiB: is the catalog garbled?");
  }
  return absl::OkStatus();
}

absl::Status RegisterCall::TakeHeader(const v1::RegisterHeader& header) {
  has_header_ = true;
  request_.pid = header.pid();
  request_.replace = header.replace();
  if (header.has_tensors()) announced_ = header.tensors();
  request_.plan_only = header.plan_only();
  if (static_cast<size_t>(header.handles_size()) > kMaxHandles) {
    return absl::InvalidArgumentError(
        absl::StrCat(header.handles_size(), " memory handles; at most ", kMaxHandles, " can be registered"));
  }
  for (const v1::MemoryHandle& proto : header.handles()) {
    auto handle = FromProto(proto);
    if (!handle.ok()) return handle.status();
    request_.handles.push_back(*std::move(handle));
  }
  if (absl::Status status = CheckModulesToNotConvert(header.modules_to_not_convert()); !status.ok()) return status;
  request_.modules_to_not_convert = {header.modules_to_not_convert().begin(), header.modules_to_not_convert().end()};
  return absl::OkStatus();
}

void RegisterCall::Decide() {
  absl::Status whole = CheckWhole(announced_, request_.tensors.size(), context_->IsCancelled(), "tensors");
  if (!has_header_) whole.Update(absl::InvalidArgumentError("a registration begins with its header"));
  if (!whole.ok()) return Finish(ToGrpc(whole));
  if (request_.plan_only) return Preview();
  registrar_->Register(std::move(request_), [this](absl::StatusOr<Registered> registered) {
    if (!registered.ok()) return Finish(ToGrpc(registered.status()));
    reply_->set_registration_id(registered->id);
    Describe(registered->plan);
    *reply_->mutable_committed() = ToProto(registered->committed);
    Finish(grpc::Status::OK);
  });
}

void RegisterCall::Preview() {
  registrar_->Preview(std::move(request_), [this](const absl::StatusOr<std::shared_ptr<const Plan>>& plan) {
    if (!plan.ok()) return Finish(ToGrpc(plan.status()));
    Describe(InfoOf(**plan));
    const std::vector<RecipeChoice>& recipes = (*plan)->recipes();
    for (size_t i = 0; i < recipes.size(); ++i) {
      if (recipes[i].recipe.fp8) reply_->add_quantized(static_cast<uint32_t>(i));
    }
    Finish(grpc::Status::OK);
  });
}

void RegisterCall::Describe(const PlanInfo& plan) {
  *reply_->mutable_catalog_fingerprint() = ToProto(plan.catalog_fingerprint);
  *reply_->mutable_plan_hash() = ToProto(plan.plan_hash);
  reply_->set_tensors(plan.tensors);
  reply_->set_quantized_tensors(plan.quantized_tensors);
  reply_->set_payload_bytes(static_cast<uint64_t>(plan.payload_bytes));
  reply_->set_wire_bytes(static_cast<uint64_t>(plan.wire_bytes));
  reply_->set_buckets(plan.buckets);
}

}  // namespace wsync
