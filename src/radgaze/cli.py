"""The command line: parse, call, print. Everything it does is a function of the package."""

from __future__ import annotations

import itertools
import json
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from radgaze import __version__
from radgaze.errors import InputError, RadgazeError

if TYPE_CHECKING:
    from radgaze.cohort import Cohort

app = typer.Typer(
    name="radgaze",
    help="Learn from where radiologists look: gaze-supervised, explainable chest X-ray networks.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
import_app = typer.Typer(help="Import a data set into a cohort.", no_args_is_help=True)
app.add_typer(import_app, name="import")

UsageError: Any = typer.BadParameter.__mro__[2]  # click's ClickException, which newer typers carry inside themselves


class Terminal(Console):
    """Shows what comes from data as it is, but for characters that would steer the terminal: they are written out."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(STEERING.sub(lambda found: f"\\x{ord(found[0]):02x}", text), **options)


STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
messages = Terminal(stderr=True)
tables = Terminal(markup=False)  # names from the data may hold brackets

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
Size = Annotated[str, typer.Option(help="Working size, HEIGHTxWIDTH, e.g. 640x512.")]
Fit = Annotated[str, typer.Option(help="letterbox (keep the aspect, pad), stretch, or canvas (see --canvas).")]
Canvas = Annotated[
    str | None, typer.Option(help="With --fit canvas: HEIGHTxWIDTH in source pixels; 3200x2560 mimics the papers.")
]
Out = Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.")]
Workers = Annotated[int | None, typer.Option(help="Processes; one per core by default.")]
ClusterEngine = Annotated[str, typer.Option("--engine", help="local, or ray: spread over a Ray cluster.")]
Address = Annotated[
    str | None,
    typer.Option(help="With --engine ray: HOST:PORT of the cluster; RAY_ADDRESS, else this machine, by default."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a cohort that is already there.")]
Strict = Annotated[bool, typer.Option(help="Stop at the first broken study instead of leaving it out by name.")]
Split = Annotated[
    str, typer.Option(help="patient, source (as the data set says), or image (mimics the papers; leaks patients).")
]
Seed = Annotated[int, typer.Option(help="Seed of the split.")]


def print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    """Options of every command; `guarded` reads --debug, because an error may come before parsing ends."""


@import_app.command("egd-cxr", epilog="Example: radgaze import egd-cxr egd-cxr/1.0.0 --images mimic-cxr --out cohort")
def import_egd_cxr_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder with master_sheet.csv.")],
    images: Annotated[Path, typer.Option(help="Where the MIMIC-CXR images are (DICOM or JPEG), at any depth.")],
    out: Out,
    gaze: Annotated[str, typer.Option(help="samples (every raw sample, as in the papers) or fixations.")] = "samples",
    name: Annotated[str, typer.Option(help="Name of the cohort in reports.")] = "EGD-CXR",
    drop_invalid: Annotated[bool, typer.Option("--drop-invalid", help="Do not use points with FPOGV = 0.")] = False,
    drop_blinks: Annotated[bool, typer.Option("--drop-blinks", help="Do not use points during blinks.")] = False,
    size: Size = "640x512",
    fit: Fit = "letterbox",
    canvas: Canvas = None,
    split: Split = "patient",
    seed: Seed = 0,
    workers: Workers = None,
    engine: ClusterEngine = "local",
    address: Address = None,
    strict: Strict = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Import EGD-CXR 1.0.0 with its gaze, masks, boxes and labels."""
    from radgaze.cohort.sources.egd_cxr import import_egd_cxr

    cohort = import_egd_cxr(
        folder,
        images,
        out,
        name=name,
        gaze=gaze,
        drop_invalid=drop_invalid,
        drop_blinks=drop_blinks,
        split=split,
        engine=engine,
        address=address,
        **engine_options(size, fit, canvas, seed, workers, strict, overwrite, quiet),
    )
    print_cohort(cohort, as_json)


@import_app.command("reflacx", epilog="Example: radgaze import reflacx reflacx/1.0.0 --images mimic-cxr --out cohort")
def import_reflacx_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder with main_data.")],
    images: Annotated[Path, typer.Option(help="Where the MIMIC-CXR images are (DICOM or JPEG), at any depth.")],
    out: Out,
    gaze: Annotated[str, typer.Option(help="fixations, or samples (1,000 Hz, from gaze_data).")] = "fixations",
    name: Annotated[str, typer.Option(help="Name of the cohort in reports.")] = "REFLACX",
    phases: Annotated[str, typer.Option(help="Which phases, e.g. 1,2,3.")] = "1,2,3",
    size: Size = "640x512",
    fit: Fit = "letterbox",
    canvas: Canvas = None,
    split: Split = "patient",
    seed: Seed = 0,
    workers: Workers = None,
    engine: ClusterEngine = "local",
    address: Address = None,
    strict: Strict = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Import REFLACX 1.0.0; a study is one reading, readings of one image share its pixels."""
    from radgaze.cohort.sources.reflacx import import_reflacx

    cohort = import_reflacx(
        folder,
        images,
        out,
        name=name,
        gaze=gaze,
        phases=parse_integers(phases, "--phases"),
        split=split,
        engine=engine,
        address=address,
        **engine_options(size, fit, canvas, seed, workers, strict, overwrite, quiet),
    )
    print_cohort(cohort, as_json)


@import_app.command("tables", epilog="Example: radgaze import tables images.csv --gaze gaze.csv --out cohort")
def import_tables_command(
    images: Annotated[Path, typer.Argument(metavar="IMAGES.csv", help="study_id, image[, patient_id, label, split …]")],
    out: Out,
    gaze: Annotated[Path | None, typer.Option(help="study_id, x, y[, t, duration, reader, valid]")] = None,
    boxes: Annotated[Path | None, typer.Option(help="study_id, name, xmin, ymin, xmax, ymax")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the cohort in reports; the folder's by default.")] = None,
    gaze_kind: Annotated[str | None, typer.Option(help="Whether the gaze table holds samples or fixations.")] = None,
    structure: Annotated[
        list[str] | None,
        typer.Option(help="Where a class shows itself, for localisation: CLASS=MASK[,MASK], e.g. pneumonia=lungs."),
    ] = None,
    size: Size = "640x512",
    fit: Fit = "letterbox",
    canvas: Canvas = None,
    split: Annotated[
        str | None, typer.Option(help="patient, source or image; source if the table has a split.")
    ] = None,
    seed: Seed = 0,
    workers: Workers = None,
    engine: ClusterEngine = "local",
    address: Address = None,
    strict: Strict = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Import any data set described by CSV tables."""
    from radgaze.cohort.sources.tables import import_tables

    optional: dict[str, Any] = {"gaze_kind": gaze_kind, "split": split}
    if structure:
        optional["class_structures"] = parse_structures(structure)
    cohort = import_tables(
        images,
        out,
        gaze=gaze,
        boxes=boxes,
        name=name,
        engine=engine,
        address=address,
        **engine_options(size, fit, canvas, seed, workers, strict, overwrite, quiet),
        **{key: value for key, value in optional.items() if value is not None},
    )
    print_cohort(cohort, as_json)


@app.command(epilog="Example: radgaze serve runs/first --cohort cohort")
def serve(
    models: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Trained runs, or files of radgaze export.")],
    cohort: Annotated[Path | None, typer.Option(help="Also browse this cohort's studies, with their gaze.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that clients must send; or set RADGAZE_TOKEN.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="torch, onnx, openvino or torch-export; PyTorch by default, for a file its own.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Most images in one pass of a network.")] = 8,
    threads: Annotated[int | None, typer.Option(help="Threads of the networks; one per core by default.")] = None,
    max_megabytes: Annotated[float, typer.Option(help="Largest request.")] = 64,
    max_pixels: Annotated[int, typer.Option(help="Largest image.")] = 50_000_000,
    queue: Annotated[int, typer.Option(help="Requests held at once; more are told to come back.")] = 64,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take, its upload included.")] = 60,
) -> None:
    """Serve trained networks over HTTP, with a page to look at predictions. Uploads are never written to disk."""
    try:
        from radgaze.inference.server import Settings, create_app
        from radgaze.inference.server.running import run
        from radgaze.inference.server.settings import read_token
    except ModuleNotFoundError as error:
        raise InputError(f'`radgaze serve` needs {error.name}; install it with pip install "radgaze[serve]".') from None
    from radgaze.cohort import Cohort
    from radgaze.inference import Predictor, load
    from radgaze.training import Run
    from radgaze.training.attention import AttentionTarget

    settings = Settings(
        host=host,
        port=port,
        token=read_token(token_file),
        max_bytes=int(max_megabytes * 1_000_000),
        max_pixels=max_pixels,
        queue=queue,
        timeout=timeout,
        batch_size=batch_size,
    )
    predictors: dict[str, Predictor] = {}
    renderings: dict[str, AttentionTarget] = {}
    for path in models:
        trained = None if path.is_file() else Run.open(path)
        name = unused_name(path.resolve().name if trained else path.stem, predictors)
        predictors[name] = load(trained or path, engine, threads=threads)
        if trained and trained.config.attention == "gaze":
            renderings[name] = AttentionTarget("gaze", trained.config.preset, trained.config.sigma)
    app = create_app(predictors, Cohort.open(cohort) if cohort else None, settings, renderings)
    run(app, settings, lambda url: tables.print(f"radgaze serves {', '.join(predictors)} at {url}", highlight=False))


@app.command(epilog="Example: radgaze phantom data --studies 240 --layout egd-cxr")
def phantom(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; it must not exist yet.")],
    studies: Annotated[int, typer.Option(help="How many studies.")] = 200,
    layout: Annotated[str, typer.Option(help="egd-cxr or reflacx.")] = "egd-cxr",
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    image_size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH of the radiographs.")] = None,
    difficulty: Annotated[float, typer.Option(help="0 (disease is plain) to 1 (hardly visible).")] = 0.3,
    image_format: Annotated[str, typer.Option(help="dcm (12-bit DICOM) or jpg (8 bits).")] = "dcm",
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Write a synthetic data set: chest X-rays, a reader's gaze, masks and boxes in a public layout."""
    from radgaze.cohort.phantom import make_phantom

    size: dict[str, Any] = {"image_size": parse_size(image_size)} if image_size else {}
    make_phantom(
        folder,
        studies=studies,
        layout=layout,  # type: ignore[arg-type]
        seed=seed,
        difficulty=difficulty,
        image_format=image_format,  # type: ignore[arg-type]
        workers=workers,
        progress=not quiet,
        **size,
    )
    tables.print(f"{studies} synthetic studies in the {layout} layout: {folder}")


@app.command(epilog="Example: radgaze info cohort")
def info(
    folder: Annotated[Path, typer.Argument(metavar="COHORT")],
    check: Annotated[bool, typer.Option(help="Also verify the checksum of every file.")] = False,
    as_json: Json = False,
) -> None:
    """What a cohort holds: studies, splits, gaze, masks, boxes, what was left out and why."""
    from radgaze.cohort import Cohort

    cohort = Cohort.open(folder)
    if check:
        cohort.check()
    print_cohort(cohort, as_json)


@app.command(epilog="Example: radgaze split cohort --seed 1")
def split(
    folder: Annotated[Path, typer.Argument(metavar="COHORT")],
    by: Annotated[str, typer.Option(help="patient, or image (mimics the papers; leaks patients).")] = "patient",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Split a cohort anew into train, val and test."""
    from radgaze.cohort import resplit

    print_cohort(resplit(folder, by=by, seed=seed), as_json)


@app.command(epilog="Example: radgaze shortcut cohort --out cohort-shortcut --rate 0.95")
def shortcut(
    folder: Annotated[Path, typer.Argument(metavar="COHORT")],
    out: Out,
    rate: Annotated[
        float, typer.Option(help="Share of training and validation images that the marker gives away.")
    ] = 0.95,
    test: Annotated[str, typer.Option(help="Markers of the test images: random, absent, or swapped.")] = "random",
    size: Annotated[float, typer.Option(help="Side of the marker, as a share of the image's shorter side.")] = 0.08,
    classes: Annotated[
        str | None, typer.Option(help="The two to four classes to give away, A,B; all by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the lots.")] = 0,
    as_json: Json = False,
) -> None:
    """Copy a cohort with a corner marker that gives the class away, except in the test split: a robustness test."""
    from radgaze.cohort import plant_shortcut

    named = parse_names(classes) if classes else None
    print_cohort(
        plant_shortcut(folder, out, rate=rate, test=test, size=size, classes=named, seed=seed),  # type: ignore[arg-type]
        as_json,
    )


@app.command(epilog="Example: radgaze train mt-unet cohort --out runs/first --epochs 60 --seed 1")
def train(
    method: Annotated[str, typer.Argument(help="mt-unet, gg-cam, or classifier (gg-cam's control).")],
    cohort: Annotated[Path, typer.Argument(metavar="COHORT")],
    out: Annotated[Path, typer.Option(help="The run folder.")],
    recipe: Annotated[
        str | None, typer.Option(help="gg-cam, classifier: paper-resnet50 or paper-efficientnetv2-s.")
    ] = None,
    attention: Annotated[str | None, typer.Option(help="gaze, mask:NAME (e.g. mask:lungs), boxes.")] = None,
    sigma: Annotated[
        float | None, typer.Option(help="Blur of the gaze in source pixels; the preset's if absent.")
    ] = None,
    scheme: Annotated[
        str | None, typer.Option(help="uncertainty-class, uncertainty, equal, saliency-only, class-only.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Base width of the U-Net.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="A named encoder instead, e.g. resnet34 or tu-convnext_tiny.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="gg-cam, classifier: any CNN of timm, e.g. resnet50 or efficientnetv2_s.")
    ] = None,
    supervise: Annotated[
        str | None,
        typer.Option(help="gg-cam: guide the CAM of the true-class, predicted-class, class-agnostic, or decision."),
    ] = None,
    loss: Annotated[str | None, typer.Option(help="gg-cam: mse, kld or 1-cc between CAM and attention.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Encoder or backbone weights: a .safetensors file, or hub.")
    ] = None,
    train_studies: Annotated[
        int | None, typer.Option(help="Learn from so many studies of the training split; whole patients, stratified.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="At most this many epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Studies per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    schedule: Annotated[str | None, typer.Option(help="plateau (the papers') or one-cycle.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Plateau: epochs without improvement before the rate drops.")
    ] = None,
    time_budget: Annotated[float | None, typer.Option(help="Seconds of training, over all sittings.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and augmentation; 0 by default.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    devices: Annotated[int | None, typer.Option(help="GPUs (or CPU processes) of each node.")] = None,
    nodes: Annotated[int | None, typer.Option(help="Machines, each started by torchrun or SLURM.")] = None,
    augment: Annotated[
        bool, typer.Option(help="Random motion and shading; --no-augment trains as the papers did.")
    ] = True,
    config: Annotated[Path | None, typer.Option(help="A JSON file of settings, or a run's config.json.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting, KEY=VALUE, e.g. clip=1.0.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted run with the same settings.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a method on a cohort; the best epoch on the validation split is kept."""
    from radgaze.training import Augmentation, fit
    from radgaze.training.processes import is_first_process

    settings = read_settings(config)
    for pair in setting or []:
        key, value = parse_setting(pair)
        place(settings, key, value)
    flags: dict[str, Any] = {
        "recipe": recipe,
        "attention": attention,
        "sigma": sigma,
        "objective.scheme": scheme,
        "model.width": width,
        "model.encoder": encoder,
        "model.backbone": backbone,
        "model.weights": weights,
        "objective.supervise": supervise,
        "objective.loss": loss,
        "train_studies": train_studies,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "patience": patience,
        "time_budget": time_budget,
        "precision": precision,
        "devices": devices,
        "nodes": nodes,
        "seed": seed,
    }
    for key, value in flags.items():
        if value is not None:
            place(settings, key, value)
    if not augment:
        settings["augmentation"] = Augmentation.none().model_dump()
    run = fit(cohort, out, method, resume=resume, progress=not quiet, **settings)
    if not is_first_process():
        return
    state = run.state
    best = state.best
    result = {
        "run": str(out),
        "epochs": state.epoch,
        "finished": state.finished,
        "seconds": round(state.seconds, 1),
        "best": best,
    }
    if as_json:
        print_json(result)
        return
    table = Table(
        "validation", f"best epoch, {state.best_epoch} of {state.epoch}", title=f"{method}: {run.content['attention']}"
    )
    for key, value in best.items():
        if key.startswith("val_"):
            table.add_row(key.removeprefix("val_").replace("_", " "), f"{value:.4f}")
    tables.print(table)
    tables.print(f"Ended: {state.finished}. Next: radgaze evaluate {out}")


@app.command(epilog="Example: radgaze export runs/first --format onnx --out model.onnx")
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    out: Annotated[Path, typer.Option(help="File to write: .onnx, .xml for OpenVINO (and its .bin), .pt2.")],
    format: Annotated[str, typer.Option(help="onnx, openvino or torch-export.")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32; for OpenVINO also bf16 or int8.")] = "fp32",
    tolerance: Annotated[
        float, typer.Option(help="bf16, int8: by how much the macro AUC on the validation split may fall.")
    ] = 0.002,
    cohort: Annotated[Path | None, typer.Option(help="Where the cohort is now; by default as the run says.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a trained network for another engine, checked against PyTorch, with its model card inside."""
    from radgaze.inference import export

    result = export(
        run, out, format=format, precision=precision, tolerance=tolerance, cohort=cohort, progress=not quiet
    )
    if as_json:
        print_json(result)
    else:
        print_export(result)


@app.command(epilog="Example: radgaze evaluate runs/first")
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN")],
    cohort: Annotated[Path | None, typer.Option(help="Another cohort with the same classes and size.")] = None,
    split: Annotated[str, typer.Option(help="test, val, train or all.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Folder for the report; the run itself by default.")] = None,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples over patients.")] = 2000,
    batch_size: Annotated[int, typer.Option(help="Studies per forward pass.")] = 16,
    grad_cam: Annotated[bool, typer.Option(help="Also measure where the true class's Grad-CAM lies.")] = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure a run and write report.json and a self-contained report.html."""
    from radgaze.inference import evaluate

    report = evaluate(
        run,
        cohort,
        split=split,
        out=out,
        resamples=resamples,
        batch_size=batch_size,
        grad_cam=grad_cam,
        progress=not quiet,
    )
    if as_json:
        print_json(report)
    else:
        print_report(report)


@app.command(epilog="Example: radgaze reproduce runs/first")
def reproduce(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the repetition; RUN-reproduced beside the run by default.")
    ] = None,
    cohort: Annotated[Path | None, typer.Option(help="Where the cohort is now; by default as the run says.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a repetition that was stopped.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a run again from its own folder and compare: every figure, every weight, the report.

    Exit code: 0 if all is the same to the bit, 1 if something differs.
    """
    from radgaze.inference import reproduce

    result = reproduce(run, out, cohort=cohort, resume=resume, progress=not quiet)
    if not result:  # another process than the first
        return
    if as_json:
        print_json(result)
    else:
        print_reproduction(result)
    if not result["identical"]:
        raise typer.Exit(1)


@app.command(epilog="Example: radgaze compare cohort --methods gg-cam,classifier --seeds 5 --out comparison")
def compare(
    cohort: Annotated[Path, typer.Argument(metavar="COHORT")],
    out: Annotated[Path, typer.Option(help="Folder of the comparison; the same command again goes on in it.")],
    methods: Annotated[
        str, typer.Option(help="Methods to train, e.g. gg-cam,classifier; NAME=METHOD is a variant.")
    ] = "",
    seeds: Annotated[str | None, typer.Option(help="How many, or which, e.g. 5 or 3,4,7; 3 by default.")] = None,
    backbones: Annotated[str, typer.Option(help="Backbones of gg-cam and classifier, e.g. resnet50,densenet121.")] = "",
    train_studies: Annotated[str, typer.Option(help="Training sizes in studies, e.g. 378,756,all.")] = "",
    runs: Annotated[
        list[str] | None, typer.Option(help="Runs trained elsewhere, RUN[,RUN...]; may be given several times.")
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="Compare the others with this method; classifier, or the first, by default.")
    ] = None,
    attention: Annotated[str | None, typer.Option(help="gaze, mask:NAME (e.g. mask:lungs), boxes.")] = None,
    epochs: Annotated[int | None, typer.Option(help="At most this many epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Studies per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    schedule: Annotated[str | None, typer.Option(help="plateau (the papers') or one-cycle.")] = None,
    config: Annotated[Path | None, typer.Option(help="A JSON file of settings, or a run's config.json.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting, KEY=VALUE, or NAME:KEY=VALUE for one method or backbone alone."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at once; one per GPU, else one per core, by default.")] = None,
    engine: ClusterEngine = "local",
    address: Address = None,
    split: Annotated[str, typer.Option(help="test, or val while the protocol is still being chosen.")] = "test",
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples over patients.")] = 2000,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare methods, backbones and training sizes over several seeds, and write one page about it."""
    from radgaze.comparison import compare

    settings = read_settings(config)
    for key in ("seed", "train_studies"):  # of the run the file is from
        settings.pop(key, None)
    settings_of: dict[str, dict[str, Any]] = {}
    for pair in setting or []:
        key, value = parse_setting(pair)
        name, colon, own_key = key.partition(":")
        place(settings_of.setdefault(name, {}) if colon else settings, own_key if colon else key, value)
    flags: dict[str, Any] = {
        "attention": attention,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "schedule": schedule,
    }
    settings |= {key: value for key, value in flags.items() if value is not None}
    comparison = compare(
        cohort,
        out,
        parse_names(methods),
        backbones=parse_names(backbones),
        seeds=parse_seeds(seeds),
        train_studies=[parse_training_size(size) for size in parse_names(train_studies)],
        settings=settings,
        settings_of=settings_of,
        runs=[run for given in runs or [] for run in parse_names(given)],
        control=control,
        jobs=jobs,
        engine=engine,
        address=address,
        split=split,
        resamples=resamples,
        progress=not quiet,
    )
    if as_json:
        print_json(comparison)
    else:
        print_comparison(comparison)
    if comparison["failed"]:
        raise typer.Exit(1)


@app.command(epilog="Example: radgaze predict runs/first scans --out predictions")
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run, or what `radgaze export` wrote.")],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE",
            help="DICOM, PNG, JPEG or TIFF files, folders searched at any depth, or globs in quotes.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must be absent or empty, unless with --resume.")],
    overlays: Annotated[bool, typer.Option(help="A picture of each prediction, OUT/overlays/*.png.")] = True,
    maps: Annotated[
        bool, typer.Option("--maps", help="The numbers of attention and CAMs, OUT/maps/*.safetensors.")
    ] = False,
    dicom: Annotated[
        str, typer.Option(help="DICOM objects to write of DICOM images, e.g. sc,sr,pm; needs radgaze[dicom-out].")
    ] = "",
    engine: Annotated[
        str | None,
        typer.Option(
            help="torch, onnx, openvino or torch-export; what fits RUN by default. ray, ray:onnx, …: on a Ray cluster."
        ),
    ] = None,
    address: Address = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass; at most these are lost by a kill.")] = 16,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an earlier call was stopped; what failed is tried again.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predict images: probabilities with intervals, attention, class activation maps, and pictures of them.

    Exit code: 0 if all went well, 3 if some images or outputs failed, 2 if nothing could be predicted.
    """
    from radgaze.inference import load
    from radgaze.inference.folder import predict, split_engine

    predictor = load(run, split_engine(engine)[1])
    if reason := predictor.card.uncalibrated:
        told = f"Probabilities are not calibrated and have no intervals, because {reason}"
        messages.print(told, style="yellow", highlight=False, markup=False, soft_wrap=True)
    summary = predict(
        predictor,
        images,
        out,
        engine=engine,
        address=address,
        batch_size=batch_size,
        overlays=overlays,
        maps=maps,
        dicom=parse_names(dicom),
        resume=resume,
        progress=not quiet,
    )
    if as_json:
        print_json(summary)
    else:
        print_predictions(summary)
    if not summary["predicted"]:
        raise typer.Exit(2)
    if summary["failed"] or summary["failed_outputs"]:
        raise typer.Exit(3)


@app.command(epilog="Example: radgaze redundancy runs/first --tau 0.5")
def redundancy(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    cohort: Annotated[
        Path | None, typer.Option(help="Take the probe images from another cohort than the run's.")
    ] = None,
    images: Annotated[int, typer.Option(help="Probe images, from the training split.")] = 16,
    layers: Annotated[
        str | None,
        typer.Option(help="Names or globs of convolutions, comma-separated, e.g. '*layer4*'; else all."),
    ] = None,
    after: Annotated[str, typer.Option(help="Where outputs are taken: activation, norm or conv.")] = "activation",
    difference: Annotated[str, typer.Option(help="mssim, pearson, rmse or rmse-z.")] = "mssim",
    tau: Annotated[
        float, typer.Option(help="Perceived difference up to which one kernel may stand for another.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of the choice of probe images.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; the run's own by default.")] = None,
    engine: ClusterEngine = "local",
    address: Address = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure how many kernels of a network show the eye something of their own.

    Writes redundancy.html, with the kernels' output images grouped by what they show, and redundancy.json.
    """
    from radgaze.inference import measure_redundancy

    report = measure_redundancy(
        run,
        cohort,
        images=images,
        layers=None if layers is None else parse_names(layers),
        after=after,
        difference=difference,
        tau=tau,
        seed=seed,
        out=out,
        engine=engine,
        address=address,
        progress=not quiet,
    )
    if as_json:
        print_json(report)
    else:
        print_redundancy(report)


@app.command(epilog="Example: radgaze simplify runs/first --out runs/small --max-auc-drop 0.005 --target-params 128000")
def simplify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run that was trained with labels.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it becomes the run of the smaller network.")],
    max_auc_drop: Annotated[
        float, typer.Option(help="By how much the macro AUC on the validation split may fall below the run's.")
    ] = 0.005,
    target_params: Annotated[
        int | None, typer.Option(help="Stop at so many parameters; without, when nothing shrinks any more.")
    ] = None,
    guide: Annotated[str, typer.Option(help="krm, or a rival: uniform, random, l1, fpgm, taylor.")] = "krm",
    ranking: Annotated[
        str, typer.Option(help="random, l1, fpgm, taylor: within each group of channels, or over all.")
    ] = "group",
    start: Annotated[
        str, typer.Option(help="fresh (new weights, ResNets only) or inherited (the kept kernels' weights).")
    ] = "fresh",
    ratio: Annotated[float, typer.Option(help="Each step aims at 1 / RATIO of the parameters.")] = 8.0,
    tau: Annotated[
        float | None, typer.Option(help="krm: one threshold for all steps; by default the least that reaches the aim.")
    ] = None,
    block_tau: Annotated[
        float, typer.Option(help="krm: residual blocks that change what is perceived by less go.")
    ] = 0.05,
    images: Annotated[int, typer.Option(help="Probe images, from the training split.")] = 16,
    difference: Annotated[str, typer.Option(help="krm: mssim, pearson, rmse or rmse-z.")] = "mssim",
    distill: Annotated[
        bool, typer.Option("--distill", help="Also learn from the large network's class scores.")
    ] = False,
    views: Annotated[int, typer.Option(help="Augmented views of each study that the large network scores.")] = 8,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each training; the run's by default.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any other training setting, KEY=VALUE, e.g. batch_size=32.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on where an earlier call was stopped.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make a trained network smaller by the redundancy of its kernels, as long as it diagnoses as well.

    Every network that is tried is a run folder under OUT/steps; what was removed and why is in OUT/simplification.html
    and, for machines, in OUT/simplification.json.
    """
    from radgaze.simplification import simplify

    settings: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    for pair in setting or []:
        place(settings, *parse_setting(pair))
    log = simplify(
        run,
        out,
        max_auc_drop=max_auc_drop,
        target_params=target_params,
        guide=guide,
        ranking=ranking,
        start=start,
        ratio=ratio,
        tau=tau,
        block_tau=block_tau,
        images=images,
        difference=difference,
        distill=distill,
        views=views,
        settings=settings,
        resume=resume,
        progress=not quiet,
    )
    if as_json:
        print_json(log)
    else:
        print_simplification(log, out)
    if log["accepted"] is None:
        raise typer.Exit(1)


@app.command(epilog="Example: radgaze demo --out demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data, the cohort and the run.")] = Path("demo"),
    studies: Annotated[int, typer.Option(help="Synthetic studies.")] = 240,
    epochs: Annotated[int, typer.Option(help="Training epochs.")] = 30,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Synthetic EGD-CXR data → import → MT-UNet → report, in a few minutes on two cores."""
    from radgaze.demo import run_demo

    report = run_demo(out, studies=studies, epochs=epochs, progress=not quiet)
    if as_json:
        print_json(report)
    else:
        print_report(report)


def engine_options(
    size: str, fit: str, canvas: str | None, seed: int, workers: int | None, strict: bool, overwrite: bool, quiet: bool
) -> dict[str, Any]:
    """What every import takes, as `write_cohort` names it."""
    return {
        "size": parse_size(size),
        "fit": fit,
        "canvas": parse_size(canvas) if canvas else None,
        "seed": seed,
        "workers": workers,
        "strict": strict,
        "overwrite": overwrite,
        "progress": not quiet,
    }


def unused_name(name: str, taken: Mapping[str, Any]) -> str:
    """``name``, or ``name-2`` and so on where that is taken."""
    candidates = (name if count == 1 else f"{name}-{count}" for count in itertools.count(1))
    return next(candidate for candidate in candidates if candidate not in taken)


def parse_size(text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise InputError(f"Size {text!r} is not HEIGHTxWIDTH; write for example 640x512.")
    return int(height), int(width)


def parse_integers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text!r} is not a list of whole numbers; write for example 1,2,3.") from None


def parse_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def parse_seeds(text: str | None) -> int | tuple[int, ...] | None:
    """A number is a count, a list says which; "3," is a list of one."""
    if text is None:
        return None
    numbers = parse_integers(text.rstrip(","), "--seeds")
    return numbers if "," in text else numbers[0]


def parse_training_size(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit() or not int(text):
        raise InputError(f"--train-studies {text!r} is no number of studies; write for example 378,756,all.")
    return int(text)


def parse_structures(pairs: list[str]) -> dict[str, list[str]]:
    structures = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        masks = parse_names(text)
        if not (name and masks):
            raise InputError(f"--structure {pair!r} is not CLASS=MASK[,MASK]; write for example pneumonia=lungs.")
        structures[name] = masks
    return structures


def parse_setting(pair: str) -> tuple[str, Any]:
    key, equals, value = pair.partition("=")
    if not (key and equals):
        raise InputError(f"--set {pair!r} is not KEY=VALUE; write for example --set clip=1.0.")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value  # a bare word is a string


def read_settings(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    from radgaze.files import read_json

    content = read_json(config, "a file of settings")
    settings = content.get("run", content) if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise InputError(
            f'{str(config)!r} does not hold a JSON object of settings; write for example {{"epochs": 30}}.'
        )
    return {key: value for key, value in settings.items() if key != "method"}


def place(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set ``a.b`` as ``settings["a"]["b"]``."""
    *parents, last = key.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, {})
        if not isinstance(settings, dict):
            raise InputError(f"Setting {key!r} goes below {parent!r}, which is not a group of settings.")
    settings[last] = value


def print_json(value: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_cohort(cohort: Cohort, as_json: bool) -> None:
    import polars as pl

    studies = cohort.studies
    label = pl.col("label").fill_null("(none)") if cohort.task == "multiclass" else pl.lit("all")
    counted = (
        studies.with_columns(label.alias("class"))
        .group_by("split", "class")
        .agg(
            pl.len().alias("studies"),
            pl.col("patient_id").n_unique().alias("patients"),
            (pl.col("gaze_count") > 0).sum().alias("with gaze"),
        )
        .sort(pl.col("split").replace_strict({"train": 0, "val": 1, "test": 2}), "class")
    )
    summary = {
        "name": cohort.name,
        "path": str(cohort.path),
        "source": cohort.meta["source"],
        "studies": len(cohort),
        "patients": studies["patient_id"].n_unique(),
        "size": list(cohort.size),
        "task": cohort.task,
        "classes": cohort.classes,
        "gaze": cohort.gaze_kind,
        "gaze points": int(studies["gaze_count"].sum()),
        "masks": cohort.structures,
        "class structures": cohort.class_structures,
        "boxes": cohort.has_boxes,
        "split by": cohort.meta["split_by"],
        "counts": cohort.meta["counts"],
        "left out": cohort.meta["left_out"],
    }
    if as_json:
        print_json({**summary, "splits": counted.to_dicts()})
        return
    table = Table(*counted.columns, title=f"{cohort.name}: {len(cohort)} studies of {summary['patients']} patients")
    for row in counted.iter_rows():
        table.add_row(*map(str, row))
    tables.print(table)
    facts = Table(show_header=False, box=None)
    for key in ("source", "size", "task", "gaze", "gaze points", "masks", "class structures", "boxes", "split by"):
        value = summary[key]
        facts.add_row(key, " x ".join(map(str, value)) if key == "size" else readable(value))
    for key, value in cohort.meta["counts"].items():
        facts.add_row(key.replace("_", " "), readable(value))
    tables.print(facts)
    left_out = cohort.meta["left_out"]
    for entry in left_out[:10]:
        told = f"left out {entry['study_id']}: {entry['reason']}"
        messages.print(told, style="yellow", highlight=False, markup=False)
    if len(left_out) > 10:
        told = f"… and {len(left_out) - 10} more, in {cohort.path / 'cohort.json'}"
        messages.print(told, style="yellow", markup=False)


def readable(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {readable(entry)}" for key, entry in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


BRACKETS = "in brackets: 95 % interval over patients"


def print_report(report: Mapping[str, Any]) -> None:
    from radgaze.report.glossary import LOCATED

    title = f"{report['title']} — {report['split']} split, attention: {report['attention']}"
    saliency = report.get("saliency") or {"model": {}}
    baselines = [name for name in saliency if name != "model"]
    table = Table("measure", "model", *baselines, title=title, caption=BRACKETS)
    classes = report.get("classification") or {}
    for key, label in {"auc_macro": "AUC, macro", "accuracy": "accuracy", "ece": "calibration error"}.items():
        if key in classes:
            table.add_row(label, interval(classes[key], "value"), *[""] * len(baselines))
    add_measures(table, [saliency[name] for name in ["model", *baselines]])
    tables.print(table)
    located = report.get("localisation") or {}
    named = LOCATED | {"uniform": "uniform"}
    maps = {label: located[name]["overall"] for name, label in named.items() if name in located}
    if any(maps.values()):
        table = Table("localisation", *maps, title="Where the true class's maps lie", caption=BRACKETS)
        add_measures(table, list(maps.values()))
        tables.print(table)
    if "path" in report:
        tables.print(f"Report: {report['path']}", soft_wrap=True)


COMPARED = {
    "auc_macro": "AUC, macro",
    "cam:energy_inside": "energy inside",
    "decision:energy_inside": "energy inside (decision)",
    "cam:pointing_game": "pointing game",
    "grad_cam:energy_inside": "energy inside (Grad-CAM)",  # where some arms have no other map
    "saliency:cc": "CC",
    "cam:cc": "CC (CAM)",
    "ece": "ECE",
}


def print_predictions(summary: Mapping[str, Any]) -> None:
    table = Table("images", "predicted", "of these earlier", "failed", "outputs failed", title="Predictions")
    keys = ("images", "predicted", "skipped", "failed", "failed_outputs")
    table.add_row(*(f"{summary[key]:,}" for key in keys))
    tables.print(table)
    for failure in summary["failures"]:
        what = "" if failure["output"] == "prediction" else f" ({failure['output']})"
        told = f"failed: {failure['image']}{what}: {failure['error']}"
        messages.print(told, style="red", highlight=False, markup=False, soft_wrap=True)
    more = summary["failed"] + summary["failed_outputs"] - len(summary["failures"])
    if more > 0:
        told = f"… and {more:,} more, in {Path(summary['path']) / 'failures.csv'}"
        messages.print(told, style="red", highlight=False, markup=False, soft_wrap=True)
    tables.print(f"Predictions: {Path(summary['path']) / 'predictions.csv'}", soft_wrap=True, markup=False)


def print_export(result: Mapping[str, Any]) -> None:
    table = Table("", "", title=f"{result['format']}, {result['precision']}", show_header=False)
    table.add_row("file", f"{result['bytes'] / 1e6:.2f} MB")
    for name, entry in result["parity"].items():
        told = f"differ by at most {entry['difference']:.2g}, of a scale of {entry['scale']:.3g}"
        table.add_row(name.replace("_", " "), told)
    for name, label in {"auc_macro": "validation AUC, macro", "cc": "validation CC"}.items():
        if entry := (result["change"] or {}).get(name):
            table.add_row(label, f"{entry['before']:.4f} to {entry['after']:.4f} ({entry['change']:+.4f})")
    tables.print(table)
    tables.print(f"Compared with PyTorch on {result['compared_on'].rstrip('.')}.", soft_wrap=True)
    tables.print(f"Written: {result['path']}. Next: radgaze.load({result['path']!r}).predict(image)", soft_wrap=True)


def print_reproduction(result: Mapping[str, Any]) -> None:
    epochs, weights, report = result["epochs"], result["weights"], result["report"]
    table = Table("", "the same", "", title="Reproduction")
    first = epochs["first"]
    told = first and f"first: {first['figure']} in epoch {first['epoch']}, {first['before']} before, {first['now']} now"
    table.add_row(f"figures of {epochs['before']} epochs", readable(epochs["identical"]), told or "")
    apart = weights["largest"]
    told = "another network" if apart is None else f"differ by at most {apart:.2g}"
    table.add_row("weights", readable(weights["identical"]), "" if weights["identical"] else told)
    if report is not None:
        told = ", ".join(itertools.islice(report["differing"], 3))
        table.add_row("report", readable(report["identical"]), told)
    tables.print(table)
    if result["environment"]:
        table = Table("environment", "before", "now")
        for name, (before, now) in result["environment"].items():
            table.add_row(name, readable(before), readable(now))
        tables.print(table)
    tables.print(f"Reproduction: {result['path']}", soft_wrap=True)


def print_redundancy(report: Mapping[str, Any]) -> None:
    network = report["network"]
    table = Table("layer", "kernels", "dead", "distinct", "KRM", title=report["title"])
    for column in table.columns[1:]:
        column.justify = "right"
    for name, layer in report["layers"].items():
        table.add_row(
            name, str(layer["kernels"]), str(len(layer["dead"])), str(layer["distinct"]), f"{layer['krm']:.3f}"
        )
    table.add_section()
    table.add_row(
        "network", str(network["kernels"]), str(network["dead"]), str(network["distinct"]), f"{network['krm']:.3f}"
    )
    tables.print(table)
    for name, reason in report["left_out"].items():
        tables.print(f"Not measured: {name}, because {reason}.")
    tables.print(
        f"Distinct at τ = {report['tau']:g}, on {report['images']} probe images; the network's KRM weighs layers by "
        "their parameters."
    )
    tables.print(f"Report: {report['path']}", soft_wrap=True)


def print_simplification(log: dict[str, Any], out: Path) -> None:
    krm = log["arguments"]["guide"] == "krm"
    table = Table("step", "from", "parameters", "threshold" if krm else "share", "validation AUC", "")
    table.add_row("–", "", f"{log['base']['parameters']:,}", "", f"{log['base']['auc']:.4f}", "the run")
    for step in log["steps"]:
        dial = step.get("tau", step.get("share"))
        verdict = "accepted" if step["accepted"] else "rejected"
        table.add_row(
            step["step"], step["from"] or "–", f"{step['parameters']:,}", f"{dial:g}", f"{step['auc']:.4f}", verdict
        )
    tables.print(table)
    tables.print(f"Ended: {log['ended']}.")
    tables.print(f"Simplification: {log['path']}", soft_wrap=True)
    if log["accepted"] is None:
        tables.print(
            "No smaller network was accepted: allow a larger --max-auc-drop, more --epochs or a smaller --ratio."
        )
    else:
        tables.print(f"{out} holds step {log['accepted']}. Next: radgaze evaluate {out}")


def print_comparison(comparison: Mapping[str, Any]) -> None:
    arms, pairs = comparison["arms"], comparison["pairs"]
    shown = {key: name for key, name in COMPARED.items() if any(key in arm["measures"] for arm in arms)}
    if all("cam:energy_inside" in arm["measures"] for arm in arms):
        shown.pop("grad_cam:energy_inside", None)
    seeds = f"{len(comparison['protocol']['seeds'])} seeds"
    title = f"{comparison['title']} — {comparison['split']} split, median and range of {seeds}"
    table = Table("arm", "measure", "median", "range", "seeds", title=title)  # long, so that it fits a narrow terminal
    for arm in arms:
        for place, key in enumerate(key for key in shown if key in arm["measures"]):
            entry = arm["measures"][key]
            spread = f"{entry['min']:.3f} to {entry['max']:.3f}" if entry["n"] > 1 else ""
            counted = f"{entry['n']} of {len(arm['runs'])}"
            table.add_row(arm["name"] if place == 0 else "", shown[key], f"{entry['median']:.3f}", spread, counted)
    tables.print(table)
    if pairs:
        table = Table("first minus second", "measure", "difference (95 % over patients)", "p, corrected", "over seeds")
        for pair in pairs:
            for place, key in enumerate(key for key in shown if key in pair["measures"]):
                entry = pair["measures"][key]
                adjusted, low = entry["p_adjusted"], entry["seed_low"]
                table.add_row(
                    f"{pair['first']} − {pair['second']}" if place == 0 else "",
                    shown[key],
                    interval(entry, "value"),
                    "n/a" if adjusted is None else f"{adjusted:.3f}",
                    "n/a" if low is None else f"{low:.3f} to {entry['seed_high']:.3f}",
                )
        tables.print(table)
    for failed in comparison["failed"]:
        told = f"failed: {failed['arm']}, seed {failed['seed']}: {failed['error']} ({failed['log']})"
        messages.print(told, style="red", highlight=False, markup=False, soft_wrap=True)
    tables.print(f"Comparison: {comparison['path']}", soft_wrap=True)


def add_measures(table: Table, columns: Sequence[Mapping[str, Any]]) -> None:
    """A row for each measure of the first column, a cell for each column."""
    for key in columns[0]:
        table.add_row(key.replace("_", " "), *(interval(column.get(key), "mean") for column in columns))


def interval(entry: Mapping[str, Any] | None, key: str) -> str:
    if entry is None or entry.get(key) is None:
        return "n/a"
    if entry.get("low") is None:
        return f"{entry[key]:.3f}"
    return f"{entry[key]:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"


def main() -> None:
    """Run the command line; errors become one sentence and an exit code (2: bad input, 1: anything else)."""
    sys.exit(guarded(lambda: app(standalone_mode=False)))


def guarded(call: Callable[[], Any]) -> int:
    debug = "--debug" in sys.argv
    try:
        code = call()
    except typer.Abort:
        messages.print("Stopped.")
        return 130
    except UsageError as error:
        error.show()
        return 2
    except (RadgazeError, OSError) as error:
        if debug:
            traceback.print_exc()
        messages.print(f"[bold red]error:[/] {escaped(str(error))}", highlight=False, soft_wrap=True)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        code = 130
    if code == 130:  # newer typers turn the interrupt into this code themselves
        messages.print(
            "\nStopped. What was finished is kept: run the same command again (train, predict: with --resume)."
        )
    return code if isinstance(code, int) else 0


def escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
