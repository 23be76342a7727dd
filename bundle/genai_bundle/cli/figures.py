# SPDX-License-Identifier: Apache-2.0
"""What requests cost, as ``run --stats``, ``chat`` and ``bench`` report it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genai_runner.metrics import Metrics
    from genai_runner.results import Result


def of(result: Result) -> dict[str, Any]:
    """Every figure of a request for JSON: times in seconds, tokens a second after the first, memory in bytes."""
    import dataclasses

    from genai_runner.metrics import peak_memory

    stats, metrics = result.stats, result.metrics
    return {
        "load_s": metrics.load_time_seconds,
        "ttft_s": stats.ttft_s,
        "total_s": stats.total_s,
        "tokens_per_s": stats.tokens_per_s,
        "graphs": {name: dataclasses.asdict(place) for name, place in stats.graphs.items()},
        "metrics": metrics.as_dict(),
        "peak_memory_bytes": peak_memory(),
    }


def show(result: Result, facts: dict[str, Any]) -> None:
    """The figures as notes, and where each graph ran."""
    from genai_bundle.cli import console

    metrics, peak = result.metrics, facts["peak_memory_bytes"]
    parts = [f"loaded in {metrics.load_time_seconds:.2f} s", f"ran in {result.stats.total_s:.2f} s"]
    if result.usage.total_tokens:
        parts += [f"{result.usage.prompt_tokens} prompt tokens", f"{result.usage.completion_tokens} new tokens"]
        parts += words(metrics)
    if peak is not None:
        parts.append(f"peak memory {console.human_size(peak)}")
    console.note("; ".join(parts))
    for name, place in result.stats.graphs.items():
        console.note(f"{name}: {place}")


def words(metrics: Metrics) -> Iterator[str]:
    """Speed, and what was saved, in few words each."""
    yield f"time to first token {metrics.time_to_first_token_seconds * 1000:.1f} ms"
    if metrics.request_prefill_time_seconds:
        yield f"prompt {metrics.prefill_tokens_per_second:.1f} tokens/s"
    yield f"{metrics.generation_tokens_per_second:.1f} tokens/s"
    if metrics.inter_token_latencies_seconds:
        half, most = (1000 * metrics.inter_token_latency_seconds(percentile) for percentile in (50, 99))
        yield f"between tokens p50 {half:.1f} ms, p99 {most:.1f} ms"
    if metrics.prefix_cache_hits:
        yield f"{metrics.prefix_cache_hits} of {metrics.prefix_cache_queries} prompt tokens from the cache"
    if metrics.spec_decode_num_draft_tokens:
        yield f"{metrics.spec_decode_num_accepted_tokens} of {metrics.spec_decode_num_draft_tokens} drafts accepted"
