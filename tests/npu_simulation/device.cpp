// A SIMULATION of an accelerator, for tests alone: torch's PrivateUse1 device with the memory and the
// arithmetic of the CPU. Every operator that is not here is computed by the CPU on copies
// (at::native::cpu_fallback), so it is slow and right. npu_simulation.py loads it.
//
// What it needs to be is said in https://docs.pytorch.org/tutorials/advanced/privateuseone.html.
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/strides.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

namespace {

constexpr auto kNpu = c10::DeviceType::PrivateUse1;
const c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);
thread_local c10::DeviceIndex current = 0;

// As many as the variable chooses, as with a real driver.
c10::DeviceIndex num_devices() {
  static const c10::DeviceIndex count = [] {
    const char* chosen = std::getenv("ASCEND_RT_VISIBLE_DEVICES");
    const std::string words = chosen ? chosen : "0";
    const auto commas = std::count(words.begin(), words.end(), ',');
    return static_cast<c10::DeviceIndex>(words.empty() ? 0 : commas + 1);
  }();
  return count;
}

void select(c10::DeviceIndex index) {
  TORCH_CHECK(index < num_devices(), "simulated npu ", int(index), " of ", int(num_devices()));
  current = std::max<c10::DeviceIndex>(index, 0);
}

c10::DeviceIndex exchange(c10::DeviceIndex index) {
  const auto before = current;
  select(index);
  return before;
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* place = size ? std::malloc(size) : nullptr;
    TORCH_CHECK(!size || place, "no memory for ", size, " bytes");
    return {place, place, &std::free, c10::Device(kNpu, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* target, const void* source, size_t size) const override {
    std::memcpy(target, source, size);
  }
};
Memory memory;
REGISTER_ALLOCATOR(kNpu, &memory);

// Everything is done when it is called, so streams and events have nothing to do.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = kNpu;
  c10::DeviceType type() const override { return kNpu; }
  c10::Device exchangeDevice(c10::Device device) const override {
    return {kNpu, exchange(device.index())};
  }
  c10::Device getDevice() const override { return {kNpu, current}; }
  void setDevice(c10::Device device) const override { select(device.index()); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    current = std::max<c10::DeviceIndex>(device.index(), 0);
  }
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return num_devices(); }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return num_devices() > 0; }
  c10::DeviceIndex deviceCount() const override { return num_devices(); }
  void setCurrentDevice(c10::DeviceIndex index) const override { select(index); }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override { return exchange(index); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return exchange(index);
  }
  bool isPinnedPtr(const void*) const override { return false; }
  void init() const override {}
};
[[maybe_unused]] const bool has_hooks = [] {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  return true;
}();

// A view of a tensor's memory for the CPU.
at::Tensor as_cpu(const at::Tensor& tensor) {
  if (tensor.device().is_cpu()) return tensor;
  const auto options = tensor.options().device(at::kCPU);
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), options);
}

at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides,
                         std::optional<at::ScalarType> type, std::optional<at::Layout>,
                         std::optional<at::Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard(device.value_or(at::Device(kNpu, current)));
  return at::detail::empty_strided_generic(sizes, strides, &memory, kKeys,
                                           c10::dtype_or_default(type));
}

at::Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> type,
                 std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(device.value_or(at::Device(kNpu, current)));
  return at::detail::empty_generic(sizes, &memory, kKeys, c10::dtype_or_default(type), format);
}

at::Tensor to_npu(const at::Tensor& tensor, at::Device device) {
  if (!tensor.defined()) return tensor;
  auto copy = empty_strided(tensor.sizes(), tensor.strides(), tensor.scalar_type(), {}, device, {});
  as_cpu(copy).copy_(tensor);
  return copy;
}

at::Tensor copy_from(const at::Tensor& source, const at::Tensor& target, bool) {
  as_cpu(target).copy_(as_cpu(source));
  return target;
}

at::Tensor copy_from_and_resize(const at::Tensor& source, const at::Tensor& target) {
  if (target.sizes() != source.sizes()) target.resize_(source.sizes());
  return copy_from(source, target, false);
}

at::Scalar item(const at::Tensor& tensor) { return as_cpu(tensor).item(); }

at::Tensor& set_storage(at::Tensor& tensor, at::Storage storage, int64_t offset,
                        at::IntArrayRef sizes, at::IntArrayRef strides) {
  auto* place = tensor.unsafeGetTensorImpl();
  place->set_storage_keep_dtype(std::move(storage));
  const auto steps = strides.empty() ? c10::contiguous_strides(sizes)
                                     : c10::DimVector(strides.begin(), strides.end());
  place->set_sizes_and_strides(sizes, steps, offset);
  return tensor;
}

at::Tensor& set_whole_storage(at::Tensor& tensor, at::Storage storage) {
  const int64_t size = storage.nbytes() / tensor.itemsize();
  return set_storage(tensor, std::move(storage), 0, size, {});
}

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight,
                       const OptionalTensor& bias, c10::SymIntArrayRef stride,
                       c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
                       c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  const auto own_bias = bias ? OptionalTensor(as_cpu(*bias)) : std::nullopt;
  const auto result =
      at::convolution_symint(as_cpu(input), as_cpu(weight), own_bias, stride, padding, dilation,
                             transposed, output_padding, groups);
  return to_npu(result, input.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight,
    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
    bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups,
    std::array<bool, 3> wanted) {
  const c10::SymInt bias_size[] = {weight.sym_size(transposed ? 1 : 0)};
  const auto [of_input, of_weight, of_bias] = at::convolution_backward_symint(
      as_cpu(gradient), as_cpu(input), as_cpu(weight),
      at::OptionalSymIntArrayRef(c10::SymIntArrayRef(bias_size)), stride, padding, dilation,
      transposed, output_padding, groups, wanted);
  const auto device = input.device();
  return {to_npu(of_input, device), to_npu(of_weight, device), to_npu(of_bias, device)};
}

void on_cpu(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  at::native::cpu_fallback(operation, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("view", TORCH_FN(at::native::view));
  library.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  library.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  library.impl("set_.source_Storage", set_whole_storage);
  library.impl("set_.source_Storage_storage_offset", set_storage);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("_local_scalar_dense", item);
  library.impl("convolution_overrideable", convolution);
  library.impl("convolution_backward_overrideable", convolution_backward);
}

TORCH_LIBRARY(npu_simulation, library) {
  library.def("as_cpu(Tensor tensor) -> Tensor", as_cpu);
  library.def("device_count() -> int", []() -> int64_t { return num_devices(); });
  library.def("current_device() -> int", []() -> int64_t { return current; });
  library.def("set_device(int index) -> ()",
              [](int64_t index) { select(static_cast<c10::DeviceIndex>(index)); });
}
