"""The command line: each command checks its options and calls one function of `commands`.

stdout carries data only; messages go to stderr.
"""

from typing import Annotated

import typer

from vqtok import DEFAULT, __version__, hub, options
from vqtok import corpus_options as packing
from vqtok import push_options as pushing
from vqtok import train_options as training
from vqtok.command_group import Commands
from vqtok.encoding import EncodeOptions, Rate
from vqtok.errors import UsageError
from vqtok.pipeline.frame_rate import parse_frame_rate
from vqtok.targets import check_apart, tokenizer_file

# torch, av and rich are slow to import, so commands import what needs them, and help does without
# markup: it starts in half of the time.
app = typer.Typer(
    cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)


def print_version(requested: bool) -> None:
    """Print the version and exit, if --version is given."""
    if requested:
        typer.echo(f"vqtok {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """A video tokenizer: any video to a grid of integers, and back."""


@app.command(epilog="Example: vqtok encode clip.mp4 > tokens.safetensors")
def encode(
    clips: Annotated[
        list[str] | None,
        typer.Argument(help="Videos, images, folders, glob patterns, @LIST, or - for stdin."),
    ] = None,
    output: options.TokensOutput = None,
    tokenizer: options.Tokenizer = DEFAULT,
    size: options.Size = None,
    fps: options.Fps = None,
    start: options.Start = 0.0,
    duration: options.Duration = None,
    lambda_: options.Lambda = None,
    tokens: options.TokensPerPosition = None,
    psnr: options.Psnr = None,
    keyframe_interval: options.KeyframeInterval = None,
    strict: options.Strict = False,
    keep_partial: options.KeepPartial = False,
    jobs: options.Jobs = 1,
    pack: packing.Pack = None,
    shard: packing.Shard = None,
    timeout: packing.Timeout = None,
    split: packing.Split = None,
    retry_failed: packing.RetryFailed = False,
    status: packing.Status = False,
    on: packing.On = None,
    workers: packing.Workers = None,
    gpus: packing.Gpus = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Encode videos to tokens."""
    options.check_verbosity(quiet, verbose)
    if status:
        from vqtok.commands.encode_corpus import show_status

        return show_status(options.check_status(output))
    sources = options.check_sources(clips)
    frame_rate = None if fps is None else parse_frame_rate(fps)
    rate = options.parse_rate(lambda_, tokens, psnr)
    encoding = EncodeOptions(size, frame_rate, start, duration, strict, rate, keyframe_interval)
    folder = options.output_folder(sources, output)
    work = packing.parse_work(shard, jobs, timeout, split, retry_failed, on, workers, gpus)
    packing.check_pack(pack, folder, force, work)
    options.check_tokens_output(folder, output, sources, tokenizer, force, keep_partial)
    tokenizer = hub.pin(tokenizer, quiet)
    if folder is not None and pack is not None:
        from vqtok.commands.encode_corpus import PlanOptions, encode_corpus

        how = tokenizer, dtype, device, work.split, work.has_gpus, work.sharing
        plan = PlanOptions(packing.parse_size(pack), encoding, *how)
        return encode_corpus(sources, folder, plan, work, quiet, verbose)

    from vqtok.commands import encode as command
    from vqtok.commands.run_options import RunOptions

    run = RunOptions(tokenizer, device, dtype, force, quiet, verbose, jobs)
    command.encode(sources, output, folder, encoding, run, keep_partial, work.shard)


@app.command(epilog="Example: vqtok decode tokens.safetensors -o clip.mp4")
def decode(
    tokens: options.TokenSources,
    output: options.VideoOutput,
    tokenizer: options.Tokenizer = DEFAULT,
    crf: options.Crf = None,
    codec: options.Codec = None,
    audio_from: options.Audio = None,
    jobs: options.Jobs = 1,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Decode tokens to videos."""
    options.check_verbosity(quiet, verbose)
    options.check_stdin(tokens)
    folder = options.output_folder(tokens, output)
    if folder is None:
        options.check_output(output, [*tokens, tokenizer_file(tokenizer), audio_from], force)
    elif audio_from is not None:
        raise UsageError("--audio-from is for a single file: decode the files one by one")
    tokenizer = hub.pin(tokenizer, quiet)

    from vqtok.commands import decode as command
    from vqtok.commands.run_options import RunOptions

    decoding = command.DecodeOptions(codec, crf, audio_from)
    run = RunOptions(tokenizer, device, dtype, force, quiet, verbose, jobs)
    command.decode(tokens, output, folder, decoding, run)


@app.command(epilog="Example: vqtok train --quantizer lfq --data my_videos/")
def train(
    files: training.Files = None,
    quantizer: training.Quantizer = None,
    data: training.Data = None,
    validation: training.Validation = None,
    cache: training.Cache = None,
    config: training.ConfigFile = None,
    set_: training.Set = None,
    out: training.Out = None,
    steps: training.LastStep = None,
    device: options.Device = "auto",
    resume: training.Resume = None,
    quiet: options.Quiet = False,
) -> None:
    """Train a tokenizer."""
    if resume is not None and (quantizer or config or set_ or out):
        raise UsageError("--resume uses the run's own settings: drop the other options")

    from vqtok.commands.train import TrainOptions, run_training

    run_training(
        TrainOptions(
            sources=[*(data or []), *(files or [])],
            validation=validation or [],
            cache=cache,
            quantizer=quantizer,
            config=config,
            overrides=set_ or [],
            out=out,
            resume=resume,
            last_step=steps,
            device=device,
            quiet=quiet,
        )
    )


@app.command("eval", epilog="Example: vqtok eval clips/")
def evaluate(
    clips: Annotated[
        list[str],
        typer.Argument(help="Videos, images, folders, packed corpora or glob patterns."),
    ],
    tokenizer: options.Tokenizer = DEFAULT,
    size: options.Size = None,
    frames: options.Frames = 33,
    lambda_: options.Lambdas = None,
    tokens: options.TokensPerPositionList = None,
    psnr: options.PsnrList = None,
    save: options.Save = None,
    as_json: options.Json = False,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure PSNR, SSIM and codebook usage against block averages."""
    options.check_stdout()
    prices, counts, decibels = map(options.parse_numbers, (lambda_, tokens, psnr))
    if save is not None:
        check_apart(options.check_folder(str(save)), clips, rereads=True)
    tokenizer = hub.pin(tokenizer, quiet)

    from vqtok.commands import eval as command
    from vqtok.commands.run_options import RunOptions

    rates = [Rate(price=price) for price in prices]
    rates += [Rate(tokens=count) for count in counts]
    rates += [Rate(psnr=value) for value in decibels]
    run = RunOptions(tokenizer, device, dtype, force, quiet)
    command.evaluate(clips, save, command.EvalOptions(size, frames, rates), as_json, run)


@app.command(epilog="Example: vqtok stats tokens.safetensors")
def stats(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="Token files or clips, folders, packed corpora, patterns; - for tokens (stdin)."
        ),
    ] = None,
    tokenizer: options.StatsTokenizer = None,
    each: options.Each = False,
    as_json: options.Json = False,
    as_csv: options.Csv = False,
    plot: options.Plot = None,
    watch: options.Watch = None,
    device: options.Device = "auto",
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Report how a codebook is used."""
    options.check_stdin(files or [])
    options.check_stdout()
    counting_options = as_csv or plot or each or device != "auto"
    if watch is not None and (files or tokenizer or as_json or counting_options):
        raise UsageError("--watch follows the log of a run: it takes no other options")
    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other")
    if not files and tokenizer and counting_options:
        raise UsageError("a codebook alone can be shown with --json only")

    if plot is not None:
        options.check_plot(plot, files or [], force)
    if tokenizer is not None:
        tokenizer = hub.pin(tokenizer, quiet)

    from vqtok.commands import stats as command

    if watch is not None:
        command.watch_run(watch)
    elif files:
        output = command.Output(as_json, as_csv, plot)
        command.show_tokens(files, tokenizer, device, each, output, quiet)
    elif tokenizer:
        command.show_codes(tokenizer, as_json)
    else:
        raise UsageError("nothing to report on: name token files, --tokenizer or --watch")


@app.command(epilog="Example: vqtok export tokens/ --to 1x -o out/")
def export(
    tokens: options.TokenSources,
    to: options.To,
    output: options.ExportOutput,
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Export tokens to the files of other projects."""
    options.check_stdin(tokens)
    folder = options.check_export(to, tokens, output)

    from vqtok.commands import export as command

    command.export(tokens, to, folder, force, quiet)


@app.command(epilog="Example: vqtok push runs/mine hf:org/name")
def push(
    run: pushing.Source,
    repository: pushing.Repository,
    license_: pushing.License = None,
    dataset: pushing.Dataset = None,
    eval_file: pushing.EvalFile = None,
    private: pushing.Private = False,
    output: pushing.Output = None,
    quiet: options.Quiet = False,
) -> None:
    """Upload a tokenizer to the Hugging Face Hub."""
    folder = pushing.check_push_output(run, output)
    name = pushing.check_repository(repository, dataset or [], output)
    license_ = pushing.check_license(license_)

    from vqtok.commands import push as command

    about = command.About(license_, dataset or [], eval_file)
    command.push(run, name, about, folder, private, quiet)
