#include "server/rpc/convert.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace wsync {
namespace {

template <typename Proto>
std::string ErrorOf(const Proto& proto) {
  const auto result = FromProto(proto);
  if (result.ok()) return "";
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(result.status().message());
}

v1::Tensor MakeTensor(const std::string& name, v1::Dtype dtype, std::vector<int64_t> shape) {
  v1::Tensor tensor;
  tensor.set_name(name);
  tensor.set_dtype(dtype);
  tensor.mutable_shape()->Add(shape.begin(), shape.end());
  return tensor;
}

Dtype AnyDtype() { return static_cast<Dtype>(*rc::gen::inRange(1, 20)); }
std::string AnyName() { return *rc::gen::container<std::string>(rc::gen::inRange('a', 'z')); }
std::vector<int64_t> AnyShape() {
  return *rc::gen::container<std::vector<int64_t>>(*rc::gen::inRange(0, 9), rc::gen::nonNegative<int64_t>());
}
int64_t AnySize() { return *rc::gen::nonNegative<int64_t>(); }

RC_GTEST_PROP(Convert, HashesComeBack, (uint64_t high, uint64_t low)) {
  const Hash128 hash{high, low};
  RC_ASSERT(FromProto(ToProto(hash)) == hash);
}

RC_GTEST_PROP(Convert, TensorsComeBack, ()) {
  const Tensor tensor{.name = AnyName(), .dtype = AnyDtype(), .shape = AnyShape()};
  const auto back = FromProto(ToProto(tensor));
  RC_ASSERT(back.ok());
  RC_ASSERT(*back == tensor);
}

TEST(Convert, DtypeNumbersAreTheWires) {
  for (int number = v1::Dtype_MIN + 1; number <= v1::Dtype_MAX; ++number) {
    const std::string name(DtypeName(static_cast<Dtype>(number)));
    EXPECT_EQ(v1::Dtype_Name(static_cast<v1::Dtype>(number)).substr(6), name);
  }
  EXPECT_EQ(v1::Dtype_MAX, static_cast<int>(Dtype::kC64));
}

TEST(Convert, MalformedTensorsAreRefused) {
  EXPECT_EQ(ErrorOf(MakeTensor("w", v1::DTYPE_UNSPECIFIED, {})),
            "tensor \"w\": unknown dtype number 0; peers of different versions may disagree on dtypes");
  EXPECT_EQ(ErrorOf(MakeTensor("w", static_cast<v1::Dtype>(20), {})),
            "tensor \"w\": unknown dtype number 20; peers of different versions may disagree on dtypes");
  EXPECT_EQ(ErrorOf(MakeTensor("w", static_cast<v1::Dtype>(-1), {})),
            "tensor \"w\": unknown dtype number -1; peers of different versions may disagree on dtypes");
  EXPECT_EQ(ErrorOf(MakeTensor("w\n", v1::DTYPE_BF16, {1, -2})), "tensor \"w\\n\": dimension -2 is negative");
  EXPECT_EQ(ErrorOf(MakeTensor("w", v1::DTYPE_BF16, std::vector<int64_t>(9, 1))),
            "tensor \"w\": 9 dimensions, at most 8 are taken");
  EXPECT_EQ(ErrorOf(MakeTensor(std::string(513, 'w'), v1::DTYPE_BF16, {})),
            absl::StrCat("tensor \"", std::string(100, 'w'), "...\": its name has 513 bytes, at most 512 are taken"));
}

RC_GTEST_PROP(Convert, RecipeRulesComeBack, (bool fp8)) {
  RecipeRules rules;
  rules.fp8 = fp8;
  rules.granularity = *rc::gen::element(Granularity::kBlock, Granularity::kChannel, Granularity::kTensor);
  rules.scale_format = *rc::gen::element(ScaleFormat::kFp32, ScaleFormat::kPow2);
  rules.preset = *rc::gen::element(Preset::kDefault, Preset::kDeepGemm, Preset::kNemo, Preset::kVerl);
  rules.include = {"a*", AnyName() + "x"};
  rules.exclude = {AnyName() + "y"};
  rules.modules_to_not_convert = {"lm_head"};
  rules.allow_infinities = {"*.mask", AnyName() + "z"};
  rules.first_layers_bf16 = *rc::gen::inRange(0, 1000);
  rules.last_layers_bf16 = *rc::gen::inRange(0, 1000);
  const auto back = FromProto(ToProto(rules));
  RC_ASSERT(back.ok());
  RC_ASSERT(*back == rules);
}

TEST(Convert, MalformedRecipeRulesAreRefused) {
  const auto with = [](auto&& change) {
    v1::RecipeRules rules = ToProto(RecipeRules());
    change(&rules);
    return ErrorOf(rules);
  };
  EXPECT_EQ(ErrorOf(v1::RecipeRules()), "recipe rules: unknown granularity number 0");
  EXPECT_EQ(with([](auto* r) { r->set_scale_format(static_cast<v1::ScaleFormat>(3)); }),
            "recipe rules: unknown scale format number 3");
  EXPECT_EQ(with([](auto* r) { r->set_preset(static_cast<v1::Preset>(-4)); }),
            "recipe rules: unknown preset number -4");
  EXPECT_EQ(with([](auto* r) { r->add_exclude(std::string(1025, 'x')); }),
            absl::StrCat("recipe rules: exclude entry \"", std::string(100, 'x'),
                         "...\" has 1025 bytes, at most 1024 are taken"));
  EXPECT_EQ(with([](auto* r) {
              for (int i = 0; i <= 100'000; ++i) r->add_modules_to_not_convert(std::string(1, 'm'));
            }),
            "recipe rules: 100001 entries in modules_to_not_convert, at most 100000 are taken");
  EXPECT_NE(with([](auto* r) { r->set_first_layers_bf16(-1); }), "");
  EXPECT_NE(with([](auto* r) { r->add_include(std::string("a[")); }), "");
}

TEST(Convert, RecipeConfigBecomesRules) {
  v1::RecipeConfig config;
  config.set_fp8(true);
  config.set_granularity("channel");
  config.set_scale("pow2");
  config.set_preset("deepgemm");
  config.add_exclude("x");
  config.set_last_layers_bf16(2);
  const auto rules = FromConfig(config);
  ASSERT_TRUE(rules.ok()) << rules.status();
  const RecipeRules expected{.granularity = Granularity::kChannel,
                             .scale_format = ScaleFormat::kPow2,
                             .preset = Preset::kDeepGemm,
                             .exclude = {"x"},
                             .last_layers_bf16 = 2};
  EXPECT_EQ(*rules, expected);
  config.set_scale("ue8m0");
  EXPECT_EQ(FromConfig(config).status().message(), "recipe.scale: \"ue8m0\" is unknown; expected one of: fp32, pow2");
}

TEST(Convert, MemoryHandlesComeBack) {
  const auto shared = FromProto(ToProto(MemoryHandle(SharedMemoryHandle{"/wsync-1", 4096})));
  ASSERT_TRUE(shared.ok()) << shared.status();
  EXPECT_EQ(std::get<SharedMemoryHandle>(*shared).name, "/wsync-1");
  EXPECT_EQ(std::get<SharedMemoryHandle>(*shared).bytes, 4096);
  const std::string bytes(64, '\xFE');
  const auto cuda = FromProto(ToProto(MemoryHandle(CudaIpcHandle{bytes, "GPU-1", INT64_MAX})));
  ASSERT_TRUE(cuda.ok()) << cuda.status();
  EXPECT_EQ(std::get<CudaIpcHandle>(*cuda).handle, bytes);
  EXPECT_EQ(std::get<CudaIpcHandle>(*cuda).device_uuid, "GPU-1");
  EXPECT_EQ(std::get<CudaIpcHandle>(*cuda).bytes, INT64_MAX);
}

TEST(Convert, MalformedMemoryHandlesAreRefused) {
  EXPECT_EQ(ErrorOf(v1::MemoryHandle()), "memory handle: neither shared memory nor CUDA IPC is given");
  for (const std::string& name :
       {std::string(), std::string("x"), std::string("/"), std::string("/../etc"), std::string("/a/b"),
        std::string("/a\0b", 4), std::string(256, 'x').replace(0, 1, "/")}) {
    v1::MemoryHandle handle;
    handle.mutable_shared_memory()->set_name(name);
    handle.mutable_shared_memory()->set_size_bytes(1);
    EXPECT_NE(ErrorOf(handle).find("not a name for shm_open"), std::string::npos) << name;
  }
  v1::MemoryHandle handle;
  handle.mutable_shared_memory()->set_name("/a");
  EXPECT_EQ(ErrorOf(handle), "shared memory \"/a\": a size of 0 bytes is impossible");
  handle.mutable_shared_memory()->set_size_bytes(UINT64_MAX);
  EXPECT_EQ(ErrorOf(handle), "shared memory \"/a\": a size of 18446744073709551615 bytes is impossible");
  handle.mutable_cuda_ipc()->set_handle("short");
  EXPECT_EQ(ErrorOf(handle), "CUDA IPC handle of 5 bytes; expected 64 from cudaIpcGetMemHandle");
  handle.mutable_cuda_ipc()->set_handle(std::string(64, 'h'));
  EXPECT_EQ(ErrorOf(handle), "CUDA IPC handle: a size of 0 bytes is impossible");
  handle.mutable_cuda_ipc()->set_device_uuid(std::string(65, 'u'));
  EXPECT_EQ(ErrorOf(handle),
            absl::StrCat("CUDA IPC handle: device UUID \"", std::string(65, 'u'), "\" is longer than 64 bytes"));
}

RC_GTEST_PROP(Convert, DestinationsComeBack, ()) {
  Destination destination;
  destination.output = AnyName();
  destination.dtype = AnyDtype();
  destination.shape = AnyShape();
  destination.row_begin = AnySize();
  destination.row_end = *rc::gen::inRange<int64_t>(destination.row_begin, INT64_MAX);
  destination.col_begin = AnySize();
  destination.col_end = *rc::gen::inRange<int64_t>(destination.col_begin, INT64_MAX);
  destination.handle = *rc::gen::nonNegative<int32_t>();
  destination.offset_bytes = AnySize();
  destination.row_pitch_bytes = AnySize();
  const v1::Destination proto = ToProto(destination);
  const auto back = FromProto(proto);
  RC_ASSERT(back.ok());
  RC_ASSERT(ToProto(*back).SerializeAsString() == proto.SerializeAsString());
  RC_ASSERT(back->offset_bytes == destination.offset_bytes);
  RC_ASSERT(back->shape == destination.shape);
}

TEST(Convert, MalformedDestinationsAreRefused) {
  const auto with = [](auto&& change) {
    v1::Destination destination;
    *destination.mutable_output() = MakeTensor("w", v1::DTYPE_F8_E4M3, {4, 4});
    change(&destination);
    return ErrorOf(destination);
  };
  EXPECT_EQ(with([](auto*) {}), "");
  EXPECT_EQ(with([](auto* d) { d->clear_output(); }),
            "tensor \"\": unknown dtype number 0; peers of different versions may disagree on dtypes");
  EXPECT_EQ(with([](auto* d) { d->set_row_begin(-1); }),
            "destination for \"w\": rows [-1, 0) and columns [0, 0) are no range");
  EXPECT_EQ(with([](auto* d) { d->set_col_begin(2); }),
            "destination for \"w\": rows [0, 0) and columns [2, 0) are no range");
  EXPECT_EQ(with([](auto* d) { d->set_handle(UINT32_MAX); }),
            "destination for \"w\": handle 4294967295, offset 0 and row pitch 0 are not all possible");
  EXPECT_NE(with([](auto* d) { d->set_offset_bytes(UINT64_MAX); }), "");
  EXPECT_NE(with([](auto* d) { d->set_row_pitch_bytes(uint64_t{1} << 63); }), "");
}

// Peers send arbitrary bytes that happen to parse: converting them must neither crash nor let an impossible value pass.
RC_GTEST_PROP(Convert, ArbitraryNumbersInDestinationsNeverPassAsNegative,
              (int64_t a, int64_t b, uint64_t c, uint32_t d)) {
  v1::Destination proto;
  *proto.mutable_output() = MakeTensor("w", static_cast<v1::Dtype>(d % 32), {a});
  proto.set_row_begin(a);
  proto.set_row_end(b);
  proto.set_handle(d);
  proto.set_offset_bytes(c);
  const auto result = FromProto(proto);
  RC_CLASSIFY(result.ok());
  if (!result.ok()) return;
  RC_ASSERT(result->row_begin >= 0);
  RC_ASSERT(result->row_end >= result->row_begin);
  RC_ASSERT(result->handle >= 0);
  RC_ASSERT(result->offset_bytes >= 0);
}

}  // namespace
}  // namespace wsync
