# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle run``: where a prompt comes from, what is printed, what is saved."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cli.samples import command, doubler, talker


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talker(tmp_path_factory.mktemp("run") / "talker.genai")


@pytest.fixture(scope="module")
def sound_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return doubler(tmp_path_factory.mktemp("run") / "doubler.genai")


def write_wave(path: Path, samples: list[int], rate: int = 8000, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    return path


def test_the_text_goes_to_stdout_and_nothing_else(bundle: Path) -> None:
    done = command("run", bundle, "one two")
    assert (done.code, done.out, done.err) == (0, "three four five six seven\n", "")


@pytest.mark.parametrize("text", ["four five", "four five\n", "four five\r\n"])
def test_the_prompt_from_stdin_loses_one_newline(bundle: Path, text: str) -> None:
    assert command("run", bundle, stdin=text).out == "six seven\n"


def test_the_prompt_from_a_file(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("five\n", encoding="utf-8")
    assert command("run", bundle, "--prompt-file", file).out == "six seven\n"
    assert command("run", bundle, "--prompt-file", "-", stdin="six").out == "seven\n"
    assert command("run", bundle, "one", "--prompt-file", file).code == 2


def test_an_empty_prompt_is_a_prompt_and_stdin_stays_unread(bundle: Path) -> None:
    done = command("run", bundle, "", stdin="five")
    assert done.code == 2  # this tokenizer makes no token of it
    assert "empty" in done.err


def test_chat(bundle: Path, tmp_path: Path) -> None:
    assert command("run", bundle, "--message", "five").out == "six seven\n"
    system = command("run", bundle, "--system", "one", "--message", "six", "--json").json
    assert (system["text"], system["usage"]["prompt_tokens"]) == ("seven", 2)
    file = tmp_path / "talk.json"
    file.write_text(json.dumps([{"role": "user", "content": "two"}, {"role": "assistant", "content": "three"}]))
    more = command("run", bundle, "--messages", file, "--message", "five", "--json").json
    assert (more["text"], more["usage"]["prompt_tokens"]) == ("six seven", 3)
    assert command("run", bundle, "--system", "one").code == 2


def test_chat_with_a_bundle_that_takes_none(sound_bundle: Path) -> None:
    done = command("run", sound_bundle, "--message", "hello")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "takes no chat messages" in done.err


def test_json_is_one_object(bundle: Path) -> None:
    found = command("run", bundle, "five", "--json").json
    assert found == {
        "text": "six seven",
        "tokens": [6, 7, 0],
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4},
        "outputs": {"tokens": [[6, 7, 0]], "text": "six seven"},
    }


def test_options_reach_the_request(bundle: Path) -> None:
    short = command("run", bundle, "one", "--max-tokens", "2", "--temperature", "0", "--json").json
    assert (short["text"], short["finish_reason"]) == ("two three", "length")
    assert command("run", bundle, "one", "--stop", "five", "--stop", "seven").out == "two three four \n"
    sampled: list[str | Path] = [
        "run",
        bundle,
        "one",
        "--temperature",
        "5",
        "--top-k",
        "4",
        "--top-p",
        "0.9",
        "--min-p",
        "0.01",
    ]
    sampled += ["--repetition-penalty", "1.1", "--max-tokens", "8", "--json"]
    first, again, other = (command(*sampled, "--seed", seed).json["tokens"] for seed in ("3", "3", "4"))
    assert first == again
    assert first != other


def test_options_that_change_scores_reach_the_request(bundle: Path) -> None:
    """The model of this bundle counts: five, six, seven, then the id 0, which ends the text."""

    def tokens(*options: str) -> list[int]:
        found: list[int] = command("run", bundle, "five", "--max-tokens", "4", "--json", *options).json["tokens"]
        return found

    assert tokens() == [6, 7, 0]
    assert tokens("--ignore-eos") == [6, 7, 0, 1]
    assert tokens("--min-tokens", "3")[2] != 0
    assert tokens("--logit-bias", "0=99") == [0]
    assert tokens("--logit-bias", "3=99", "--logit-bias", "4=99.5", "--no-repeat-ngram-size", "1")[:2] == [4, 3]
    assert tokens("--bad-words", "six", "--bad-words", "seven")[0] not in (6, 7)
    assert tokens("--logit-bias", "3=1e4", "--presence-penalty", "2e4", "--frequency-penalty", "1")[:2] != [3, 3]
    assert tokens("--typical-p", "0.5", "--temperature", "0.01") == [6, 7, 0]


def test_several_answers(bundle: Path) -> None:
    drawn = command("run", bundle, "five", "--n", "3", "--temperature", "2", "--logprobs", "2", "--json").json
    assert len(drawn["sequences"]) == 3
    assert drawn["sequences"][0]["tokens"] == drawn["tokens"]
    assert len(drawn["sequences"][2]["logprobs"][0]["top"]) == 2
    beams = ["--num-beams", "4", "--n", "2", "--temperature", "0", "--length-penalty", "2", "--max-tokens", "3"]
    found = command("run", bundle, "five", *beams, "--early-stopping", "never", "--json").json["sequences"]
    assert found[0]["text"] == "six seven"
    assert found[0]["score"] >= found[1]["score"]
    printed = command("run", bundle, "five", *beams, "--num-beam-groups", "2", "--diversity-penalty", "0.1").out
    assert printed.startswith("six seven\n---\n")
    refused = command("run", bundle, "five", *beams, "--early-stopping", "always")
    assert (refused.code, "early_stopping is 'always'" in refused.err) == (2, True)
    assert command("run", bundle, "five", "--best-of", "2", "--n", "3", "--temperature", "1").code == 2


@pytest.mark.parametrize("bias", ["five=1", "5", "5=much"])
def test_a_bias_is_an_id_and_a_number(bundle: Path, bias: str) -> None:
    done = command("run", bundle, "five", "--logit-bias", bias)
    assert done.code == 2
    assert "expected ID=X" in done.err


def test_guesses_save_time_and_change_nothing(sample: Path) -> None:
    arguments = [sample, "Once upon a time", "--temperature", "0", "--no-repeat-ngram-size", "0", "--max-tokens", "80"]
    plain = command("run", *arguments)
    guessed = command("run", *arguments, "--speculate", "lookup", "--stats")
    assert guessed.out == plain.out
    assert command("run", *arguments, "--speculate", "wildly").code == 2


def test_an_option_out_of_range_is_a_usage_error(bundle: Path) -> None:
    done = command("run", bundle, "one", "--top-p", "1.5")
    assert done.code == 2
    assert "top_p" in done.err


def test_stats_go_to_stderr_and_into_the_json(bundle: Path) -> None:
    done = command("run", bundle, "one", "--stats")
    assert done.out == "two three four five six seven\n"
    for words in ("time to first token", "tokens/s", "peak memory", "7 new tokens"):
        assert words in done.err
    stats = command("run", bundle, "one", "--stats", "--json").json["stats"]
    assert stats["peak_memory_bytes"] > 10_000_000
    assert 0 < stats["ttft_s"] <= stats["total_s"]
    assert stats["metrics"]["generation_tokens"] == len(stats["metrics"]["inter_token_latencies_seconds"]) + 1 == 7
    assert set(stats["metrics"]["inter_token_latency_seconds"]) == {"p50", "p90", "p99"}


def test_a_trace_is_written(bundle: Path, tmp_path: Path) -> None:
    assert command("run", bundle, "five", "--trace", tmp_path / "trace.json").code == 0
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [event["cat"] for event in events].count("step") == 3


@pytest.mark.parametrize("extra", [["--backend", "reference"], ["--variant", "portable"], ["--variant", "ort-cpu"]])
def test_backend_and_variant(bundle: Path, extra: list[str]) -> None:
    assert command("run", bundle, "five", *extra).out == "six seven\n"


def test_other_ways_to_load(bundle: Path) -> None:
    assert command("run", bundle, "five", "--threads", "1", "--low-memory", "--device", "cpu").out == "six seven\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--variant", "fast"], 2, "no variant 'fast'"),
        (["--backend", "abacus"], 2, "no backend is called 'abacus'"),
        (["--threads", "0"], 2, "threads"),
        (["--input", "nothing=1"], 2, "no input 'nothing'"),
        (["--input", "prompt"], 2, "NAME=VALUE"),
        (["--output", "sound=x.wav"], 2, "no output 'sound'"),
    ],
)
def test_mistakes_are_one_line_each(bundle: Path, arguments: list[str], code: int, words: str) -> None:
    done = command("run", bundle, "five", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
    assert words in done.err


def test_no_bundle(tmp_path: Path) -> None:
    assert command("run", tmp_path / "absent.genai", "one").code == 2
    broken = tmp_path / "broken.genai"
    broken.write_bytes(b"no bundle at all")
    done = command("run", broken, "one")
    assert (done.code, done.err.count("\n")) == (3, 1)


def test_outputs_are_saved(bundle: Path, tmp_path: Path) -> None:
    targets = [tmp_path / name for name in ("ids.npy", "ids.json", "story.txt")]
    options = [
        part for target in targets for part in ("--output", f"{'tokens' if 'ids' in target.name else 'text'}={target}")
    ]
    assert command("run", bundle, "five", *options).out == "six seven\n"
    assert np.load(targets[0]).tolist() == [[6, 7, 0]]
    assert json.loads(targets[1].read_text()) == [[6, 7, 0]]
    assert targets[2].read_text(encoding="utf-8") == "six seven"
    assert command("run", bundle, "five", "--output", f"tokens={tmp_path / 'ids.doc'}").code == 2


def test_audio_in_and_out(sound_bundle: Path, tmp_path: Path) -> None:
    source = write_wave(tmp_path / "in.wav", [0, 8192, -16384])
    saved = tmp_path / "out.npy"
    done = command("run", sound_bundle, "--input", f"sound=@{source}", "--output", f"louder={saved}")
    assert (done.code, done.out) == (0, "")
    assert np.load(saved).tolist() == [0.0, 0.5, -1.0]


def test_audio_written_as_float_wav_is_read_back_exactly(sound_bundle: Path, tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    samples = [0.0, 1.0, -0.75, 1e-7]
    saved = tmp_path / "out.wav"
    assert command("run", sound_bundle, f"{samples}", "--output", f"louder={saved}").code == 0
    found, rate = soundfile.read(saved, dtype="float32")
    assert rate == 8000
    assert found.tolist() == (np.float32(2) * np.array(samples, np.float32)).tolist()


def test_audio_of_another_rate_is_refused_and_channels_are_averaged(sound_bundle: Path, tmp_path: Path) -> None:
    fast = write_wave(tmp_path / "fast.wav", [1, 2], rate=16000)
    done = command("run", sound_bundle, "--input", f"sound=@{fast}")
    assert done.code == 2
    assert "16000" in done.err
    assert "8000" in done.err
    both = write_wave(tmp_path / "both.wav", [8192, -8192, 16384, 0], channels=2)
    assert command("run", sound_bundle, "--input", f"sound=@{both}", "--json").json["outputs"]["louder"] == [0.0, 0.5]


def test_a_wav_is_read_without_soundfile_too(
    sound_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    source = write_wave(tmp_path / "in.wav", [0, 8192, -16384])
    done = command("run", sound_bundle, "--input", f"sound=@{source}", "--json")
    assert done.json["outputs"]["louder"] == [0.0, 0.5, -1.0]
    (tmp_path / "in.flac").write_bytes(b"fLaC")
    assert "pip install" in command("run", sound_bundle, "--input", f"sound=@{tmp_path / 'in.flac'}").err


def test_arrays_as_json_and_as_npy(sound_bundle: Path, tmp_path: Path) -> None:
    done = command("run", sound_bundle, "--input", "sound=[1, 2.5]")
    assert (done.code, done.out) == (0, "louder: float32[2] [2.0, 5.0]\n")
    np.save(tmp_path / "in.npy", np.array([1.0, -1.0], np.float32))
    assert "[2.0, -2.0]" in command("run", sound_bundle, "--input", f"sound=@{tmp_path / 'in.npy'}").out
    assert command("run", sound_bundle, "--input", "sound=[1, ").code == 2
    missing = command("run", sound_bundle)
    assert missing.code == 2
    assert "sound" in missing.err


def test_what_json_cannot_say_becomes_null(sound_bundle: Path) -> None:
    assert command("run", sound_bundle, "[3.4e38, 0.0]", "--json").json["outputs"]["louder"] == [None, 0.0]


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A talker that has no end token and room for a million: it is still talking when a test has seen enough."""
    state = {"kv": {"graph": "decoder", "ports": {"p": "q"}, "axis": 2, "tokens": "ids", "capacity": 1_000_000}}
    text = {"tokenizer": "tokenizer.json", "template": "chat.jinja", "eos": []}
    return talker(tmp_path_factory.mktemp("run") / "endless.genai", state=state, text=text, tests=[])


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """`genai-bundle run` as a process of its own that has begun to print."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    line = [sys.executable, "-m", "genai_bundle", "run", *map(str, arguments)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdout.read(3) == b"two"
    return process


@pytest.fixture
def listening() -> Iterator[None]:
    """Children hear of interrupts, which a shell's background job ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("stats", [False, True])
def test_text_streams_and_an_interrupt_ends_it_with_130(endless: Path, listening: None, stats: bool) -> None:
    process = start(endless, "one", *(["--stats"] if stats else []))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert (b"time to first token" in err) if stats else not err


def test_a_closed_pipe_ends_the_run_quietly(endless: Path) -> None:
    process = start(endless, "one")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert err == b""


def test_an_answer_of_a_given_form(sample: Path, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    lark, schema = tmp_path / "two.lark", tmp_path / "schema.json"
    lark.write_text('start: "yes" | "no"', encoding="utf-8")
    schema.write_text('{"enum": ["yes", "no"]}', encoding="utf-8")
    forms = [["--choice", "yes", "--choice", "no"], ["--regex", "yes|no"], ["--grammar", str(lark)]]
    for form in [*forms, ["--json-schema", str(schema)], ["--json-schema", '{"enum": ["yes", "no"]}']]:
        done = command("run", sample, "Once", *form)
        assert (done.code, done.out.strip().strip('"') in ("yes", "no")) == (0, True)
    done = command("run", sample, "Once", "--regex", "a", "--choice", "b")
    assert (done.code, "--regex and --choice are both given" in done.err) == (2, True)
    done = command("run", sample, "Once", "--json-schema", '{"not": {}}')
    assert (done.code, "Unimplemented" in done.err) == (2, True)
