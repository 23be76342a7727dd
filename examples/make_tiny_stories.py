# SPDX-License-Identifier: Apache-2.0
"""Make the sample model: write its text, train it on the processor, and build ``tiny-stories.genai`` from it.

The model is a Llama of about half a million parameters that writes very short children's stories and answers a few
kinds of questions. It is meant to be small enough to ship and to try at once, yet to have everything that a real
checkpoint has: a byte-level BPE tokenizer, a chat template, grouped-query attention and tied embeddings.

    python examples/make_tiny_stories.py                      # about ten minutes on two processor cores
    python examples/make_tiny_stories.py --checkpoint-only --work checkpoint
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, track
from tiny_stories_text import NAMES, QUESTIONS, SUBJECTS, Message, conversation, expand, story, tidy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# The annotations of transformers change between its versions and do not hold under mypy --strict.
Model = Any
TextTokenizer = Any

SEED = 20
CONTEXT = 512
BATCH = 8
VOCABULARY = 1280  # enough for nearly every word of the stories to be one token
PEAK_RATE = 4e-3
IGNORED = -100  # the label that the loss leaves out
BOS, EOS, PAD, SYSTEM, USER, ASSISTANT, END = SPECIALS = [
    "<|bos|>", "<|eos|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
]  # fmt: skip
# A message of an unknown role is read as the user's; a system message may stand anywhere, or be absent.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}
        {{- '<|assistant|>' + (message['content'] | trim) + '<|end|>' -}}
    {%- elif message['role'] == 'system' -%}
        {{- '<|system|>' + (message['content'] | trim) + '<|end|>' -}}
    {%- else -%}
        {{- '<|user|>' + (message['content'] | trim) + '<|end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""


def make_tokenizer(rng: random.Random) -> TextTokenizer:
    """Train a byte-level BPE tokenizer on a sample of the text."""
    stories = [story(rng, subject) for subject in SUBJECTS * 40]  # each of them, so that no name is a rare word
    answers = [message["content"] for _ in range(2000) for message in conversation(rng)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # every byte, so that any input can be encoded
        show_progress=False,
    )
    tokenizer.train_from_iterator(stories + answers, trainer)
    # Plain text gets a BOS; the chat template writes its own and is encoded without special tokens.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    wrapper: Any = PreTrainedTokenizerFast
    return wrapper(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT, END],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def chat_labels(ids: list[int], assistant: int, end: int) -> list[int]:
    """Leave everything but the assistant's words out of the loss: what people ask need not be predicted."""
    labels, answering = [], False
    for token in ids:
        labels.append(token if answering else IGNORED)
        answering = token == assistant or (answering and token != end)
    return labels


def documents(tokenizer: TextTokenizer, rng: random.Random) -> Iterator[tuple[list[int], list[int]]]:
    """Yield token ids and labels of stories and conversations without end, about as much text of each."""
    assistant, end = tokenizer.convert_tokens_to_ids([ASSISTANT, END])
    while True:
        ids = [*tokenizer.encode(story(rng)), tokenizer.eos_token_id]
        yield ids, [IGNORED, *ids[1:]]
        for _ in range(2):
            text = tokenizer.apply_chat_template(conversation(rng), tokenize=False)
            ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)  # some are too long
            if len(ids) <= CONTEXT:
                yield ids, chat_labels(ids, assistant, end)


def packed_rows(tokenizer: TextTokenizer, rng: random.Random) -> Iterator[tuple[list[int], ...]]:
    """Fill rows of CONTEXT tokens with whole documents; yield ids, labels and positions.

    The positions start again at every document, from which transformers sees that the documents of a row must not
    attend to each other.
    """
    open_rows: list[tuple[list[int], list[int], list[int]]] = []
    pad = tokenizer.pad_token_id
    for ids, labels in documents(tokenizer, rng):
        row = next((row for row in open_rows if len(row[0]) + len(ids) <= CONTEXT), None)
        if row is None:
            row = ([], [], [])
            open_rows.append(row)
        for part, more in zip(row, (ids, labels, range(len(ids))), strict=True):
            part.extend(more)
        if len(open_rows) > 16:  # the fullest row will hardly get fuller
            done = open_rows.pop(max(range(len(open_rows)), key=lambda index: len(open_rows[index][0])))
            missing = CONTEXT - len(done[0])
            yield done[0] + [pad] * missing, done[1] + [IGNORED] * missing, done[2] + list(range(missing))


def make_model(tokenizer: TextTokenizer) -> Model:
    """Make the untrained model."""
    ends: list[int] = tokenizer.convert_tokens_to_ids([EOS, END])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train(model: Model, tokenizer: TextTokenizer, steps: int) -> None:
    """Train for a number of steps with AdamW, warming up and then following a cosine down to a hundredth."""
    rows = packed_rows(tokenizer, random.Random(SEED))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    warmup = min(100, steps // 10 + 1)

    def rate(step: int) -> float:
        return min((step + 1) / warmup, 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    average = 0.0
    model.train()
    with Progress() as progress:
        task = progress.add_task("training", total=steps)
        for step in range(steps):
            batch = [torch.tensor(part) for part in zip(*itertools.islice(rows, BATCH), strict=True)]
            ids, labels, positions = batch
            loss = model(input_ids=ids, labels=labels, position_ids=positions, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
            progress.update(task, advance=1, description=f"training, loss {average:.3f}")
    model.eval()


def generate(model: Model, tokenizer: TextTokenizer, ids: list[int], **options: Any) -> str:
    """Return the text that follows a prompt, greedily unless the options say otherwise."""
    prompt = torch.tensor([ids])
    options = {"do_sample": False, "max_new_tokens": CONTEXT - len(ids), **options}
    with torch.inference_mode():
        output = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    return str(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))


def reply(model: Model, tokenizer: TextTokenizer, messages: list[Message], **options: Any) -> str:
    """Return the assistant's next message."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return generate(model, tokenizer, tokenizer.encode(text, add_special_tokens=False), **options)


def check(model: Model, tokenizer: TextTokenizer) -> None:
    """Ask questions of every kind, count the right answers, and show some stories."""
    rng = random.Random(SEED + 1)
    for kind, known in QUESTIONS.items():
        right = 0
        for template, answer in track(known, f"asking: {kind}", transient=True):
            question = tidy(expand(template, rng))
            right += reply(model, tokenizer, [{"role": "user", "content": question}], max_new_tokens=40) == answer
        print(f"questions of kind {kind}: {right} of {len(known)} answered right")
    about = 0
    for subject in track(SUBJECTS, "asking for stories", transient=True):
        article = "" if subject in NAMES else "a "
        request = tidy(f"Tell me a story about {article}{subject}.")
        about += subject in reply(model, tokenizer, [{"role": "user", "content": request}])
    print(f"stories about something: {about} of {len(SUBJECTS)} have their subject in them")
    for prompt in ("Once upon a time", "One day", "", "Lily and her dog"):
        text = generate(model, tokenizer, tokenizer.encode(prompt), do_sample=True, temperature=0.7, top_p=0.95)
        print(f"\n--- {prompt!r}\n{prompt}{text}")


def save(model: Model, tokenizer: TextTokenizer, checkpoint: Path) -> None:
    """Write a checkpoint folder as transformers lays it out."""
    model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.95)  # it has the token ids already
    model.save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)


def build_bundle(checkpoint: Path, output: Path) -> None:
    """Build the bundle from the checkpoint folder."""
    options = ["--name", "tiny-stories", "--license", "Apache-2.0", "--force"]
    command = [sys.executable, "-m", "genai_bundle", "build", str(checkpoint), "-o", str(output), *options]
    subprocess.run(command, check=True)


def make_checkpoint(checkpoint: Path, steps: int, *, ask: bool) -> None:
    """Train the tokenizer and the model, save them, and show what the model can do."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(2)  # a sum over threads rounds differently with their number
    tokenizer = make_tokenizer(random.Random(SEED))
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, steps)
    save(model, tokenizer, checkpoint)
    if ask:
        check(model, tokenizer)


def main() -> None:
    """Read the command line and make the model."""
    parser = argparse.ArgumentParser(description="Train the tiny-stories sample model and build its bundle.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("tiny-stories.genai"))
    parser.add_argument("--work", type=Path, help="folder for the checkpoint (default: a temporary one)")
    parser.add_argument("--steps", type=int, default=1600, help="training steps (default: %(default)s)")
    parser.add_argument("--checkpoint-only", action="store_true", help="train, but do not build the bundle")
    parser.add_argument("--no-questions", action="store_true", help="do not ask the trained model anything")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = arguments.work or Path(temporary)
        make_checkpoint(checkpoint, arguments.steps, ask=not arguments.no_questions)
        if not arguments.checkpoint_only:
            build_bundle(checkpoint, arguments.output)


if __name__ == "__main__":
    main()
