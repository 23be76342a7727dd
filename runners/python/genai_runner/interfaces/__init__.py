# SPDX-License-Identifier: Apache-2.0
"""The interface that the ONNX working group on generative AI proposes, over this runner and over other stacks.

from genai_runner.interfaces import load

pipe = load("stories.genai", engine="openvino-genai")
config = pipe.get_generation_config()
config.max_new_tokens = 40
print(pipe("Once upon a time", config).text)
"""

from .config import BeamSearchConfig, GenerationConfig, SamplingConfig, StopCriteria
from .pipeline import GeneratedSequence, GenerationInput, GenerationResult, Generator, Text2TextPipeline
from .registry import Device, Engine, engine_names, enumerate_devices, find_engine, load, register_engine

__all__ = [
    "BeamSearchConfig",
    "Device",
    "Engine",
    "GeneratedSequence",
    "GenerationConfig",
    "GenerationInput",
    "GenerationResult",
    "Generator",
    "SamplingConfig",
    "StopCriteria",
    "Text2TextPipeline",
    "engine_names",
    "enumerate_devices",
    "find_engine",
    "load",
    "register_engine",
]
