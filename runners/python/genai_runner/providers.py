# SPDX-License-Identifier: Apache-2.0
"""The execution providers of ONNX Runtime as data: what `--device` names, who ships it, and what may be set.

Options are an allow-list. Left out is whatever names a file or folder to write, a library to load, or an address in
memory; what reduces precision is set by the runner, from `precision`. Providers that send values over a network are no
devices. The figures and names are those of the provider's documentation; only the CPU has been run by this project.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from genai_bundle.errors import UsageError

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Provider:
    """One execution provider.

    package: what to install for it, "" where it comes with a build of the platform's maker. options: those that a user
    may set. exact, fast: what the runner sets for a precision. memory: the name of the device's memory in bindings,
    where values may stay between runs; "cpu" where they are handed over by the host.
    """

    name: str
    package: str = ""
    options: frozenset[str] = frozenset()
    exact: Mapping[str, str] = field(default_factory=dict)
    fast: Mapping[str, str] = field(default_factory=dict)
    memory: str = CPU


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PROVIDERS: Mapping[str, Provider] = {
    CPU: Provider("CPUExecutionProvider", "onnxruntime"),
    "cuda": Provider(
        "CUDAExecutionProvider",
        "onnxruntime-gpu",
        _words(
            """device_id gpu_mem_limit arena_extend_strategy cudnn_conv_algo_search cudnn_conv_use_max_workspace
            cudnn_conv1d_pad_to_nc1d do_copy_in_default_stream prefer_nhwc sdpa_kernel use_ep_level_unified_stream
            fuse_conv_bias enable_skip_layer_norm_strict_mode tunable_op_enable tunable_op_tuning_enable"""
        ),
        exact={"use_tf32": "0", "enable_skip_layer_norm_strict_mode": "1"},
        fast={"use_tf32": "1"},
        memory="cuda",
    ),
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        "onnxruntime-gpu",
        _words(
            """device_id trt_max_workspace_size trt_max_partition_iterations trt_min_subgraph_size
            trt_builder_optimization_level trt_auxiliary_streams trt_context_memory_sharing_enable
            trt_build_heuristics_enable trt_profile_min_shapes trt_profile_max_shapes trt_profile_opt_shapes
            trt_layer_norm_fp32_fallback trt_force_sequential_engine_build"""
        ),
        exact={"trt_fp16_enable": "0", "trt_bf16_enable": "0", "trt_int8_enable": "0"},
        fast={"trt_fp16_enable": "1"},
        memory="cuda",
    ),
    "dml": Provider(
        "DmlExecutionProvider",
        "onnxruntime-directml",
        _words("device_id performance_preference device_filter disable_metacommands"),
        memory="dml",
    ),
    "qnn": Provider(
        "QNNExecutionProvider",
        "onnxruntime-qnn",
        _words(
            """backend_type device_id htp_performance_mode htp_graph_finalization_optimization_mode htp_arch soc_model
            vtcm_mb rpc_control_latency qnn_context_priority offload_graph_io_quantization"""
        ),
        exact={"enable_htp_fp16_precision": "0"},
        fast={"enable_htp_fp16_precision": "1"},
    ),
    "webgpu": Provider(
        "WebGpuExecutionProvider",
        "onnxruntime-webgpu",
        _words("deviceId powerPreference preferredLayout enableGraphCapture storageBufferCacheMode validationMode"),
        memory="webgpu",
    ),
    "coreml": Provider(
        "CoreMLExecutionProvider",
        "onnxruntime",
        _words("MLComputeUnits RequireStaticInputShapes EnableOnSubgraphs SpecializationStrategy"),
        # The neural engine computes in float16.
        exact={"ModelFormat": "MLProgram", "MLComputeUnits": "CPUAndGPU", "AllowLowPrecisionAccumulationOnGPU": "0"},
        fast={"ModelFormat": "MLProgram", "AllowLowPrecisionAccumulationOnGPU": "1"},
    ),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        "onnxruntime-openvino",
        _words("device_type num_of_threads num_streams model_priority disable_dynamic_shapes enable_qdq_optimizer"),
        exact={"precision": "ACCURACY"},
    ),
    "rocm": Provider(
        "ROCMExecutionProvider",
        "onnxruntime-rocm",
        _words("device_id gpu_mem_limit arena_extend_strategy miopen_conv_exhaustive_search do_copy_in_default_stream"),
    ),
    "migraphx": Provider(
        "MIGraphXExecutionProvider",
        "onnxruntime-migraphx",
        _words("device_id migraphx_exhaustive_tune migraphx_mem_limit migraphx_arena_extend_strategy"),
        exact={"migraphx_fp16_enable": "0", "migraphx_int8_enable": "0"},
        fast={"migraphx_fp16_enable": "1"},
    ),
    "xnnpack": Provider("XnnpackExecutionProvider", options=_words("intra_op_num_threads")),
    "dnnl": Provider("DnnlExecutionProvider", options=_words("use_arena")),
    "nnapi": Provider("NnapiExecutionProvider"),
    "cann": Provider(
        "CANNExecutionProvider",
        "onnxruntime-cann",
        _words("device_id npu_mem_limit arena_extend_strategy enable_cann_graph"),
        exact={"precision_mode": "force_fp32"},
        memory="cann",
    ),
    "vitisai": Provider("VitisAIExecutionProvider"),
}

BOOKKEEPING = _words(
    """Shape Size Gather GatherElements Concat Slice Split Squeeze Unsqueeze Reshape Range Cast Add Sub Mul Div Mod Neg
    Min Max Equal Less Greater LessOrEqual GreaterOrEqual And Or Not Where Expand ConstantOfShape ReduceProd ReduceMax
    ReduceSum Identity Constant Transpose NonZero ScatterND MemcpyFromHost MemcpyToHost If Loop"""
)
"""Operators that work out shapes and positions. Providers themselves leave these to the CPU: a copy would cost more."""


def provider_of(device: str, present: Collection[str]) -> Provider:
    """The provider behind a device. Raises UsageError where there is none, or it is not among those `present`."""
    provider = PROVIDERS.get(device)
    here = ", ".join(devices_of(present))
    if provider is None:
        raise UsageError(
            f"onnxruntime has no device {device!r}", hint=f"Known: {', '.join(PROVIDERS)}; installed: {here}"
        )
    if provider.name not in present:
        hint = (
            f"Try: pip install {provider.package}, in the place of another onnxruntime package"
            if provider.package not in ("", "onnxruntime")
            else "It comes with onnxruntime's builds for the platforms that have it"
        )
        raise UsageError(f"the onnxruntime installed here has no {device!r}, only: {here}", hint=hint)
    return provider


def devices_of(present: Collection[str]) -> list[str]:
    """The devices that these providers stand for."""
    return [device for device, provider in PROVIDERS.items() if provider.name in present]


def options_of(device: str, provider: Provider, given: Mapping[str, str], precision: str) -> dict[str, str]:
    """What the provider gets. Raises UsageError for an option that is not on its list, or against the precision."""
    ours = provider.exact if precision == "exact" else provider.fast
    for key in given:
        if key in ours:
            raise UsageError(f"the option {key!r} is decided by the precision, which is {precision!r}")
        if key not in provider.options:
            known = ", ".join(sorted(provider.options)) or "none"
            raise UsageError(f"the device {device!r} takes no option {key!r}", hint=f"Options: {known}")
    return {**given, **ours}
