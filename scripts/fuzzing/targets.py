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
SMALL = ("--size", "32")

# Ways to read a file, with {} for its name.
READ_VIDEO = (
    f"encode {{}} -o {OUT}",
    f"encode {{}} -o {OUT} --duration 0.2 --fps 24",
    f"encode {{}} -o {OUT} --start 0.05 --duration 0.1",
    f"encode {{}} -o {OUT} --strict --quiet",
    f"encode - -o {OUT} --duration 0.2",
    "encode {} --tokens 0.5 --duration 0.1 --verbose",
    "eval {} --frames 3 --json",
    "stats {} --json",
)
READ_TOKENS = (
    "decode {} -o out.mp4",
    "decode {} -o out.mkv --codec ffv1",
    "decode {} -o out.png",
    "decode {} -o -",
    "decode - -o out.gif",
    *("stats {} --json", "stats {}", "stats {} --csv", "stats - --each"),
)
READ_TOKENIZER = (
    *(f"stats --tokenizer {{}} {end}".strip() for end in ("", "--json")),
    *(f"encode clip.png -o {OUT} --tokenizer {{}}", f"decode {TOKENS} -o out.png --tokenizer {{}}"),
    "stats clip.png --tokenizer {} --json",
)
READ_SOUND = tuple(
    f"decode {TOKENS} -o out.{end} --audio-from {{}}" for end in ("mp4", "mkv", "webm", "mov")
)


def reading(
    files: Callable[[], Files], commands: tuple[str, ...], *options: str
) -> Callable[[Random], Case]:
    """Return a start: a command that reads one of the files.

    options: added to every command.
    """

    def start(random: Random) -> Case:
        name, data = pick(random, files())
        command = pick(random, commands)
        args = tuple(part.format(name) for part in command.split())
        extra = (*options, *(SMALL if args[0] in ("encode", "eval") else ()))
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


USE_TOKENIZER = ("--tokenizer", TOKENIZER)
TARGETS = {
    "videos": Target(
        reading(inputs.videos, READ_VIDEO, *USE_TOKENIZER), BYTES, run_command, weight=3
    ),
    "playlists": Target(playlists.start, playlists.MUTATIONS, run_command, weight=2),
    "tokens": Target(
        reading(inputs.tokens, READ_TOKENS, *USE_TOKENIZER),
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
    "sound": Target(
        reading(inputs.sounds, READ_SOUND, *USE_TOKENIZER), BYTES, run_command, weight=2
    ),
    "commands": Target(command_lines.start, command_lines.MUTATIONS, run_command, weight=4),
    "runs": Target(damaged_run, (*SAFETENSORS, *BYTES), run_command),
}
