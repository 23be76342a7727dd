# SPDX-License-Identifier: Apache-2.0
"""Runs bundles: `load` a file, call the pipeline.

pipe = genai_runner.load("stories.genai")
result = pipe("Once upon a time", max_tokens=32)
result.text, result.tokens, result.finish_reason
"""

from genai_bundle.errors import BackendError, GenaiError, InvalidBundle, UsageError

from .conversation import Conversation
from .decode import Decoder
from .grammar import Grammar
from .loading import load
from .metrics import Metrics
from .pipeline import Pipeline, Session
from .replies import Reply, ReplyFormat, ReplyStream, ToolCall
from .results import Result, Stats, Stream, Usage
from .scheduler import QueueFullError, Scheduler
from .sequences import Sequence, TokenLogprob
from .trace import ChromeTrace, Event

__all__ = [
    "BackendError",
    "ChromeTrace",
    "Conversation",
    "Decoder",
    "Event",
    "GenaiError",
    "Grammar",
    "InvalidBundle",
    "Metrics",
    "Pipeline",
    "QueueFullError",
    "Reply",
    "ReplyFormat",
    "ReplyStream",
    "Result",
    "Scheduler",
    "Sequence",
    "Session",
    "Stats",
    "Stream",
    "TokenLogprob",
    "ToolCall",
    "Usage",
    "UsageError",
    "load",
]
