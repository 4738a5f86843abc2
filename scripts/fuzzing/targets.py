"""The table of targets."""

from collections.abc import Callable

from fuzzing import command_lines, inputs, playlists
from fuzzing.byte_mutations import BYTES
from fuzzing.case import Case, Random, Target
from fuzzing.inputs import Files
from fuzzing.judge import run_command
from fuzzing.safetensors_mutations import SAFETENSORS
from fuzzing.token_mutations import forge_clip
from fuzzing.values import pick

TOKENS, TOKENIZER, OUT = "tokens.safetensors", "tokenizer.safetensors", "out.safetensors"
USE = f"--tokenizer {TOKENIZER}"
SMALL = ("--size", "32")

# Ways to read a file, with FILE for its name.
READ_VIDEO = (
    f"encode FILE -o {OUT} {USE}",
    f"encode FILE -o {OUT} {USE} --duration 0.2 --fps 24",
    f"encode FILE -o {OUT} {USE} --start 0.05 --duration 0.1",
    f"encode FILE -o {OUT} {USE} --strict --quiet",
    f"encode - -o {OUT} {USE} --duration 0.2",
    f"encode FILE {USE} --tokens 0.5 --duration 0.1 --verbose",
    f"eval FILE {USE} --frames 3 --json",
    f"stats FILE {USE} --json",
)
READ_TOKENS = (
    f"decode FILE -o out.mp4 {USE}",
    f"decode FILE -o out.mkv {USE} --codec ffv1",
    f"decode FILE -o out.png {USE}",
    f"decode FILE -o - {USE}",
    f"decode - -o out.gif {USE}",
    f"stats FILE {USE} --json",
    *("stats FILE --json", "stats FILE", "stats FILE --csv", "stats - --each"),
    *(f"export FILE --to {layout} -o out.d" for layout in ("1x", "nanogpt", "parquet")),
    "export - --to 1x -o out.d --quiet",
)
READ_TOKENIZER = (
    "stats --tokenizer FILE",
    "stats --tokenizer FILE --json",
    "stats clip.png --tokenizer FILE --json",
    f"encode clip.png -o {OUT} --tokenizer FILE",
    f"decode {TOKENS} -o out.png --tokenizer FILE",
)
READ_SOUND = tuple(
    f"decode {TOKENS} -o out.{end} {USE} --audio-from FILE" for end in ("mp4", "mkv", "webm", "mov")
)


def reading(files: Callable[[], Files], commands: tuple[str, ...]) -> Callable[[Random], Case]:
    """Return a start: a command that reads one of the files, beside a few that are valid."""

    def start(random: Random) -> Case:
        name, data = pick(random, files())
        command = pick(random, commands)
        args = tuple(name if part == "FILE" else part for part in command.split())
        extra = SMALL if args[0] in ("encode", "eval") else ()
        beside = {
            TOKENIZER: inputs.tokenizer(),
            TOKENS: inputs.tokens()[0][1],
            "clip.png": dict(inputs.videos())["clip.png"],
        }
        return Case(
            args=(*args, *extra),
            files=beside | {name: data},
            subject=name,
            outputs=tuple(arg for arg in args if arg.startswith("out.")),
            donor=pick(random, files())[1],
            stdin="-" in args[:2],
        )

    return start


def damaged_run(random: Random) -> Case:
    """Return the start of a target that resumes a run with a damaged file."""
    files = inputs.run_folder()
    name, _ = pick(random, files)
    args = ("train", "--resume", "run", "--steps", "2", "--device", "cpu", "--quiet")
    donor = pick(random, files)[1]
    return Case(args, dict(files), subject=name, outputs=("run",), donor=donor)


TARGETS = {
    "videos": Target(reading(inputs.videos, READ_VIDEO), BYTES, run_command, weight=3),
    "playlists": Target(playlists.start, playlists.MUTATIONS, run_command, weight=2),
    "tokens": Target(
        reading(inputs.tokens, READ_TOKENS),
        (*[forge_clip] * 5, *SAFETENSORS, *SAFETENSORS, *BYTES),
        run_command,
        most=3,
        weight=6,
    ),
    "tokenizers": Target(
        reading(inputs.tokenizers, READ_TOKENIZER),
        (*SAFETENSORS, *SAFETENSORS, *BYTES),
        run_command,
        weight=6,
    ),
    "sound": Target(reading(inputs.sounds, READ_SOUND), BYTES, run_command, weight=2),
    "commands": Target(command_lines.start, command_lines.MUTATIONS, run_command, weight=4),
    "runs": Target(damaged_run, (*SAFETENSORS, *BYTES), run_command),
}
