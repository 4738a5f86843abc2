"""Command lines of all commands and options, with values that are wrong."""

import os
from dataclasses import fields, replace
from functools import cache

import typer.main
from fuzzing import inputs, odd_paths
from fuzzing.case import Case, Mutation, Random
from fuzzing.values import INTEGERS, NUMBERS, TEXTS, pick

from vqtok.cli import app
from vqtok.settings import FSQSettings, ModelSettings, TrainSettings

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is asked of the hub, or pushed to it

OUTPUTS = (
    *"out out.mp4 out.safetensors out.png out.svg no/out.mp4 out\x1b[1m.mkv".split(),
    "o" * 255,
)
INPUTS = ("clip.mp4", "clip.png", "tokens.safetensors", "tokenizer.safetensors", "run")
OUTPUT_OPTIONS = ("-o", "--plot", "--save", "--out", "--cache")
LEFT_OUT = ("--watch", "--steps", "--help")  # that follow a run or train until they are stopped
PATH_OPTIONS = (
    *("--audio-from", "--data", "--validation", "--config", "--resume", "--tokenizer", "--eval"),
)
WORDS = (
    *"auto cpu cuda cuda:0 cuda:-1 cuda:99999999999999999999 meta mps".split(),
    *"float32 bfloat16 float64 ffv1 libx265 rawvideo png aac subrip fsq lfq vq2".split(),
    *"0.5,1 , 1,,2 1,nan -1 30,31,inf".split(),
)
SETTINGS = [
    *(f"model.{field.name}" for field in fields(ModelSettings)),
    *(f"train.{field.name}" for field in fields(TrainSettings) if field.name != "steps"),
    *(f"quantizer.{field.name}" for field in fields(FSQSettings)),
    *". model model.x model.widths.0 \x1b[31m train.batch_size.a.b".split(),
    *("", "x" * 3000),
]
TOKENIZER = ("--tokenizer", "tokenizer.safetensors")
STARTS = (
    ("encode", "clip.mp4", "-o", "out.safetensors", "--size", "32", *TOKENIZER),
    ("encode", "clip.mp4", "clip.png", "-o", "out", "--size", "32", *TOKENIZER),
    ("decode", "tokens.safetensors", "-o", "out.mp4", *TOKENIZER),
    ("decode", "tokens.safetensors", "tokens.safetensors", "-o", "out", *TOKENIZER),
    ("eval", "clip.mp4", "--frames", "3", "--json", "--size", "32", *TOKENIZER),
    ("stats", "tokens.safetensors", "--json"),
    ("stats", "clip.png", *TOKENIZER),
    ("export", "tokens.safetensors", "--to", "1x", "-o", "out"),
    ("push", "tokenizer.safetensors", "hf:org/name", "--license", "mit", "-o", "out"),
    ("encode", "clip.png", "-o", "out.safetensors", "--tokenizer", "hf:org/name"),
    ("train", "clip.png", "--out", "out", "--steps", "1", *inputs.TRAINING),
)


@cache
def options(command: str) -> list[tuple[str, bool]]:
    """Return the options of a command, each with whether it is a flag."""
    parameters = typer.main.get_command(app).commands[command].params
    found = [(p.opts[0], getattr(p, "is_flag", False)) for p in parameters if p.opts[0][0] == "-"]
    return [(name, flag) for name, flag in found if name not in LEFT_OUT]


def start(random: Random) -> Case:
    """Return a command line that works, in a folder with odd paths."""
    files = {
        "clip.mp4": dict(inputs.videos())["clip.mp4"],
        "clip.png": dict(inputs.videos())["clip.png"],
        "tokens.safetensors": inputs.tokens()[0][1],
        "tokenizer.safetensors": inputs.tokenizer(),
    }
    return Case(pick(random, STARTS), files, "clip.mp4", odd_paths=True, may_run_out=True)


def value(option: str, random: Random) -> str:
    """Return a value for an option."""
    if option in OUTPUT_OPTIONS:
        choices = (OUTPUTS, OUTPUTS, INPUTS, odd_paths.NAMES, odd_paths.UNWRITABLE)
    elif option == "--set":
        return f"{pick(random, SETTINGS)}={value('', random)}"
    elif option in PATH_OPTIONS:
        choices = (INPUTS, odd_paths.NAMES, odd_paths.OTHERS)
    else:
        choices = (INTEGERS, INTEGERS, NUMBERS, TEXTS, WORDS, WORDS)
    return str(pick(random, pick(random, choices)))


def add_option(case: Case, random: Random) -> Case:
    """Add an option, or set it to another value: the last one counts."""
    name, flag = pick(random, options(case.args[0]))
    added = (name,) if flag else (name, value(name, random))
    return replace(case, args=(*case.args, *added))


def add_source(case: Case, random: Random) -> Case:
    """Add an argument, or put it in place of the first."""
    path = pick(random, pick(random, (INPUTS, odd_paths.NAMES, odd_paths.OTHERS)))
    after = 2 if random.random() < 0.7 else 1
    return replace(case, args=(case.args[0], path, *case.args[after:]))


def drop_argument(case: Case, random: Random) -> Case:
    at = int(random.integers(1, max(2, len(case.args))))
    return replace(case, args=case.args[:at] + case.args[at + 1 :])


MUTATIONS: tuple[Mutation, ...] = (add_option, add_option, add_option, add_source, drop_argument)
