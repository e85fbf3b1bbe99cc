"""Runs every command of radgaze, and its server, over a folder of inputs: ``python -m tests.every_command``.

In the working folder ``in`` holds images.csv, gaze.csv, boxes.csv, the folders good, damaged and pictures, a table for
each file of damaged, and trees in the layouts of EGD-CXR and REFLACX; all that is written goes to ``out``. Logging
and warnings are at their loudest, and ``out/codes.json`` tells how each command ended.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

warnings.simplefilter("default")
logging.basicConfig(level=logging.DEBUG)
for builder in ("torch", "onnxscript", "onnx_ir", "torch_pruning"):  # thousands of lines, and no image in sight
    logging.getLogger(builder).setLevel(logging.INFO)

RECIPE = "--epochs 1 --batch-size 8 --schedule one-cycle --lr 2e-3 --precision fp32"
COMMANDS = {
    "import": "import tables in/images.csv --gaze in/gaze.csv --boxes in/boxes.csv --size 48x32 --out out/cohort",
    "info": "info out/cohort --check",
    "train": f"train mt-unet out/cohort --width 2 {RECIPE} --out out/run",
    "evaluate": "evaluate out/run --resamples 20",
    "compare": "compare out/cohort --runs out/run --resamples 20 --jobs 1 --out out/comparison",
    "redundancy": "redundancy out/run --images 2",
    "simplify": (
        "simplify out/run --start inherited --epochs 1 --ratio 2 --target-params 20000 --max-auc-drop 1 --images 2 "
        "--out out/small"
    ),
    "predict": "predict out/run in/good in/pictures in/damaged --maps --out out/predictions",
    "predict, DICOM": "predict out/run in/good/000.dcm in/damaged --dicom sc,sr,pm --out out/objects",
    "onnx": "export out/run --format onnx --out out/model.onnx",
    "openvino": "export out/run --format openvino --out out/model.xml",
    "torch-export": "export out/run --format torch-export --out out/model.pt2",
    "predict, onnx": "predict out/model.onnx in/good/000.dcm --out out/by-onnx",
    "predict, openvino": "predict out/model.xml in/good/000.dcm --out out/by-openvino",
    "predict, torch-export": "predict out/model.pt2 in/good/000.dcm --out out/by-torch",
    "import, EGD-CXR": (
        "import egd-cxr in/egd-cxr/egd-cxr/1.0.0 --images in/egd-cxr/mimic-cxr --workers 1 --out out/egd-cxr"
    ),
    "import, REFLACX": (
        "import reflacx in/reflacx/reflacx --images in/reflacx/mimic-cxr --workers 1 --out out/reflacx"
    ),
    "import, some damaged": "import tables in/damaged.csv --workers 2 --out out/damaged-cohort",
}


def run(command: str) -> int:
    from radgaze.cli import app, guarded

    sys.argv = ["radgaze", "--debug", *command.split()]
    print(f"$ radgaze {command}", flush=True)
    print(f"$ radgaze {command}", file=sys.stderr, flush=True)
    return guarded(lambda: app(standalone_mode=False))


def serve(model: Path, cohort: Path, files: list[Path]) -> list[int]:
    """The status of each answer; all of them are printed."""
    from fastapi.testclient import TestClient

    from radgaze.cohort import Cohort
    from radgaze.inference import load
    from radgaze.inference.server import create_app

    statuses = []
    with TestClient(create_app({"model": load(model)}, Cohort.open(cohort)), "http://localhost") as client:
        answers = [client.post("/v1/predict", files={"image": (file.name, file.read_bytes())}) for file in files]
        batch = [("images", (file.name, file.read_bytes())) for file in files]
        answers.append(client.post("/v1/predict/batch", files=batch))
        study = "/v1/cohort/studies/0"
        places = ("/v1/models", "/v1/cohort/studies", study, f"{study}/gaze", f"{study}/predict", "/metrics")
        answers += [client.get(place) for place in places]
    for answer in answers:
        print(dict(answer.headers), answer.text)
        statuses.append(answer.status_code)
    return statuses


def main() -> None:
    import radgaze
    from radgaze.inference import Failure

    damaged = sorted(Path("in/damaged").iterdir())
    codes: dict[str, object] = {name: run(command) for name, command in COMMANDS.items()}
    for file in damaged:
        # gaze in fractions asks for the size, which is in the header alone
        gaze = " --gaze in/fractions.csv" if file.stem in ("rows", "magic", "large", "cut1000") else ""
        codes[f"strict import of {file.stem}"] = run(
            f"import tables in/{file.stem}.csv{gaze} --strict --size 48x32 --out out/strict-{file.stem}"
        )
    codes["serve"] = serve(Path("out/run"), Path("out/cohort"), [Path("in/good/000.dcm"), *damaged])
    results = radgaze.load("out/run").predict_all([*damaged, *sorted(Path("in/good").iterdir())] * 2, batch_size=4)
    codes["failures"] = sum(isinstance(result, Failure) for result in results)
    Path("out/codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main()
