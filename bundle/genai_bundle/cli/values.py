# SPDX-License-Identifier: Apache-2.0
"""Values between the command line and a pipeline: `NAME=VALUE` in, files and JSON out."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_bundle.errors import UsageError

if TYPE_CHECKING:
    from genai_bundle.manifest import Input, Output

NO_PILLOW = 'Install it with: pip install "genai-bundle[image]"'
NO_SOUNDFILE = 'Install a reader for other formats with: pip install "genai-bundle[audio]"'


def split(option: str, text: str) -> tuple[str, str]:
    """`NAME=VALUE` as its two parts; `option` is named in the error."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"{option} takes NAME=VALUE, got {text!r}")
    return name, value


def parse(name: str, declared: Input, text: str) -> Any:
    """The value of `--input name=text` for an input declared so.

    `@FILE` reads a file: .npy, .json, or audio, text or bytes by the input's type. `@@...` is a literal that begins
    with `@`. A text is taken as it stands, any other literal is JSON. The pipeline checks shape and dtype.
    """
    if text.startswith("@") and not text.startswith("@@"):
        return _read(name, declared, Path(text[1:]))
    literal = text[1:] if text.startswith("@@") else text
    if declared.type == "text":
        return literal
    if declared.type == "bytes":
        raise UsageError(f"input {name!r} takes bytes: give a file, as in --input {name}=@FILE")
    return parse_json(literal, f"input {name!r}", f"It takes {declared.type}; --input {name}=@FILE reads a file.")


def parse_json(text: str, where: str, hint: str | None = None) -> Any:
    """`text` as JSON, or a usage error that shows the place."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"not JSON: {error}", where=where, hint=hint) from error


def read_text(path: Path) -> str:
    """A text file as UTF-8; a file that is none is a usage error."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 text: {error.reason} at byte {error.start}", where=str(path)) from error


def _read(name: str, declared: Input, path: Path) -> Any:
    if declared.type == "text":
        return read_text(path)
    if declared.type == "bytes":
        return path.read_bytes()
    suffix = path.suffix.lower()
    if suffix == ".npy":
        import numpy as np

        try:
            return np.load(path, allow_pickle=False)
        except ValueError as error:
            raise UsageError(f"not a NumPy array: {error}", where=str(path)) from error
    if suffix == ".json":
        return parse_json(read_text(path), str(path))
    if declared.type in ("audio", "f32"):
        return read_audio(path, declared.rate)
    raise UsageError(f"input {name!r} takes {declared.type} from a .npy or .json file", where=str(path))


def read_audio(path: Path, rate: int | None) -> Any:
    """The samples of an audio file as f32[N] in [-1, 1), channels averaged. The file must have the `rate` in Hz."""
    try:
        import soundfile
    except ImportError:
        samples, found = _read_wave(path)
    else:
        try:
            samples, found = soundfile.read(path, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise UsageError(f"cannot be read as audio: {error}", where=str(path)) from error
    if rate is not None and found != rate:
        hint = f"Resample it, for example: ffmpeg -i {path.name} -ar {rate} resampled.wav"
        raise UsageError(f"the audio has {found} samples a second, the input takes {rate}", where=str(path), hint=hint)
    return samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]


def _read_wave(path: Path) -> tuple[Any, int]:
    """A PCM WAV file of 16 bits by the standard library: samples f32[N, channels], samples a second."""
    import wave

    import numpy as np

    try:
        with wave.open(str(path)) as file:
            if file.getsampwidth() != 2:
                raise UsageError(f"{8 * file.getsampwidth()}-bit samples", where=str(path), hint=NO_SOUNDFILE)
            raw = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            return raw.reshape(-1, file.getnchannels()).astype(np.float32) / np.float32(32768), file.getframerate()
    except (wave.Error, EOFError) as error:
        raise UsageError(f"cannot be read as a WAV file: {error}", where=str(path), hint=NO_SOUNDFILE) from error


def save(name: str, declared: Output, value: Any, path: Path) -> None:
    """Write one output to `path`, whose suffix says how: .npy, .json, .txt, .wav (f32 samples) or .png (u8[H,W,3])."""
    suffix = path.suffix.lower()
    if value is None:
        raise UsageError(f"output {name!r} was not emitted: there is nothing to save", where=str(path))
    if suffix == ".txt":
        path.write_text(value if isinstance(value, str) else json.dumps(jsonable(value)) + "\n", encoding="utf-8")
    elif suffix == ".json":
        path.write_text(json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    elif isinstance(value, str):
        raise UsageError(f"output {name!r} is text: save it as .txt or .json", where=str(path))
    elif suffix == ".npy":
        import numpy as np

        np.save(path, value, allow_pickle=False)
    elif suffix == ".wav":
        _write_wave(name, declared, value, path)
    elif suffix == ".png":
        _write_image(name, value, path)
    else:
        raise UsageError(f"output {name!r}: the suffix must be .npy, .json, .txt, .wav or .png", where=str(path))


def _write_wave(name: str, declared: Output, value: Any, path: Path) -> None:
    """Samples as 32-bit float WAV: neither rounded nor clipped."""
    import numpy as np

    if declared.rate is None or value.dtype.kind != "f" or value.size != max(value.shape, default=0):
        raise UsageError(f"output {name!r} is no audio of one channel with a rate: save it as .npy", where=str(path))
    data = np.ascontiguousarray(value.reshape(-1), "<f4").tobytes()
    frames, rate = len(data) // 4, declared.rate
    form = struct.pack("<4sIHHIIHHH", b"fmt ", 18, 3, 1, rate, rate * 4, 4, 32, 0)
    fact = struct.pack("<4sII", b"fact", 4, frames)
    chunks = b"WAVE" + form + fact + struct.pack("<4sI", b"data", len(data))
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(chunks) + len(data)) + chunks + data)


def _write_image(name: str, value: Any, path: Path) -> None:
    """Pixels as PNG: u8[H, W], u8[H, W, 1|3|4], or the same with leading axes of length 1."""
    while value.ndim > 3 and value.shape[0] == 1:
        value = value[0]
    if value.ndim == 3 and value.shape[2] == 1:
        value = value[:, :, 0]
    if value.dtype != "uint8" or not (value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (3, 4))):
        shown = f"{value.dtype}{list(value.shape)}"
        raise UsageError(f"output {name!r} is {shown}, a PNG takes uint8[H, W, 3]: save it as .npy", where=str(path))
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError("writing PNG needs Pillow", where=str(path), hint=NO_PILLOW) from error
    Image.fromarray(value).save(path)


def jsonable(value: Any) -> Any:
    """A value as JSON: arrays as nested lists, bytes as base64; nan and infinity, which JSON lacks, as null."""
    if isinstance(value, bytes):
        import base64

        return base64.b64encode(value).decode("ascii")
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def shown(value: Any) -> str:
    """A value in one line for people: small arrays in full, large ones by dtype, shape and range."""
    if not hasattr(value, "shape"):
        return str(value)
    kind = f"{value.dtype}{list(value.shape)}"
    if value.size <= 16:
        return f"{kind} {json.dumps(jsonable(value))}"
    return f"{kind} from {value.min():g} to {value.max():g}" if value.dtype.kind in "fiu" else kind


def one_line_less(text: str) -> str:
    """`text` without the newline that editors and `echo` put at its end."""
    return text.removesuffix("\n").removesuffix("\r")
