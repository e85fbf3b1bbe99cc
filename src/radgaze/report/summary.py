"""The top of the report: one paragraph in plain language, cautions, and the headline numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from radgaze.report.glossary import BASELINES, LOCATED, describe
from radgaze.report.values import count, estimate, finite, interval, listing, number, section

__all__ = ["attention_target", "cards", "cautions", "method_name", "paragraph", "split_name"]

METHODS = {"mt-unet": "MT-UNet", "gg-cam": "GG-CAM", "classifier": "Classifier"}
SPLITS = {"train": "training split", "val": "validation split", "test": "test split", "all": "whole cohort"}
SPLIT_BY = {"patient": "split by patient", "image": "split by image", "source": "split as published"}
HEADLINES = {
    "classification": ("auc_macro", "accuracy", "ece"),
    "saliency": ("cc", "kld", "nss"),
    "localisation": ("pointing_game", "energy_inside", "cc"),
}


def method_name(run: Mapping[str, Any]) -> str:
    """The method as papers write it."""
    method = str(run.get("method") or "model")
    return METHODS.get(method, method)


def attention_target(report: Mapping[str, Any]) -> str | None:
    """What the network was trained to attend to, None for a run without an attention target."""
    attention = str(report.get("attention") or "none")
    return None if attention == "none" else attention


def split_name(report: Mapping[str, Any]) -> str:
    """The studies evaluated, to follow "the": "test split"."""
    split = str(report.get("split") or "evaluated")
    return SPLITS.get(split, f"{split} split")


def paragraph(report: Mapping[str, Any]) -> Markup:
    """What was trained on what, for what, and how well it does: a few sentences, escaped."""
    sentences = [_training_sentence(report)]
    if (attention := attention_target(report)) is not None:
        sentences.append(Markup("The attention target is <em>{}</em>.").format(attention))
    classification, saliency = section(report, "classification"), section(report, "saliency")
    evaluated = _studies_and_patients(report)
    subject = f"On the {split_name(report)}{f' ({evaluated})' if evaluated else ''} its"
    for key, name in (("auc_macro", "macro AUC"), ("accuracy", "accuracy")):
        if (told := _told(classification.get(key))) is not None:
            sentences.append(Markup("{} {} is {}.").format(subject, name, told))
            subject = "Its"
            break
    if (told := _told(section(saliency, "model").get("cc"))) is not None:
        sentences.append(
            Markup("{} attention maps correlate with the target at CC {}{}.").format(subject, told, _against(saliency))
        )
    for name, map_name in {"model": "activation", "grad-cam": LOCATED["grad-cam"]}.items():
        if (told := _told(_overall(report, name).get("energy_inside"))) is not None:
            flat = number(estimate(_overall(report, "uniform").get("energy_inside"))["value"])
            sentences.append(
                Markup(
                    "Of the true class’s {}, a share of {} lies inside its structures; of a uniform map, {}."
                ).format(map_name, told, flat)
            )
            break  # of a network with maps of its own, these
    return Markup(" ").join(sentences)


def cautions(report: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing a number."""
    found = []
    split = report.get("split")
    if split == "val":
        found.append("These numbers are on the validation split, which chose the best epoch: they are optimistic.")
    elif split in ("train", "all"):
        found.append(f"These numbers are on the {SPLITS[split]}: they include studies the network was trained on.")
    if section(report, "cohort").get("split_by") == "image":
        found.append("The cohort is split by image: a patient may be on both sides, and the numbers are optimistic.")
    return found


def cards(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The headline numbers, up to three for each head; maps beside their strongest usual baseline."""
    saliency = section(report, "saliency")
    sources = {
        "classification": {"model": section(report, "classification")},
        "saliency": {name: section(saliency, name) for name in ("model", *BASELINES)},
        "localisation": {name: _overall(report, name) for name in ("model", "uniform")},
    }
    shown = []
    for part, keys in HEADLINES.items():
        source = sources[part]
        for key in keys:
            if key not in source["model"]:
                continue
            measured = estimate(source["model"][key])
            rival = next((name for name in BASELINES if key in source.get(name, {})), None)
            shown.append(
                {
                    "measure": describe(key),
                    "value": number(measured["value"]),
                    "interval": interval(measured),
                    "baseline": rival and f"{rival}: {number(estimate(source[rival][key])['value'])}",
                }
            )
    return shown


def _overall(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Localisation over all classes, of the ``"model"``'s own map, its ``"grad-cam"`` or the ``"uniform"`` map."""
    return section(section(section(report, "localisation"), name), "overall")


def _training_sentence(report: Mapping[str, Any]) -> Markup:
    run, cohort = section(report, "run"), section(report, "cohort")
    classes = [str(name) for name in report.get("classes") or ()]
    details = []
    if (parameters := finite(run.get("parameters"))) is not None:
        size = f"{parameters / 1e6:.2f} million" if parameters >= 1e5 else f"{parameters:,.0f}"
        details.append(f"{size} parameters")
    if run.get("scheme"):
        details.append(f"learning scheme {run['scheme']}")
    aims = []
    if section(report, "classification") and classes:
        aims.append(f"tell apart {listing(classes)}" if len(classes) > 1 else f"recognise {classes[0]}")
    if section(report, "saliency"):
        aims.append("predict where attention goes")

    sentence = Markup("<strong>{}</strong>").format(method_name(run))
    if details:
        sentence += f" ({', '.join(details)})"
    sentence += " was trained"
    if cohort.get("name"):
        sentence += Markup(" on <strong>{}</strong>").format(str(cohort["name"]))
        facts = [_studies_and_patients(cohort), SPLIT_BY.get(str(cohort.get("split_by")), "")]
        if any(facts):
            sentence += f" ({', '.join(filter(None, facts))})"
    return sentence + (f" to {' and to '.join(aims)}." if aims else ".")


def _studies_and_patients(counts: Mapping[str, Any]) -> str:
    """``162 studies of 155 patients``, as far as it is known."""
    sizes = [
        f"{count(counts[many])} {one if counts[many] == 1 else many}"
        for one, many in (("study", "studies"), ("patient", "patients"))
        if finite(counts.get(many)) is not None
    ]
    return " of ".join(sizes)


def _told(value: Any) -> Markup | None:
    """An estimate within a sentence, None where there is no number to tell."""
    measured = estimate(value)
    if finite(measured["value"]) is None:
        return None
    bounds = interval(measured)
    return Markup("<strong>{}</strong>{}").format(
        number(measured["value"]), "" if bounds == "n/a" else f" (95 % interval {bounds})"
    )


def _against(saliency: Mapping[str, Any]) -> str:
    """How the model's CC compares with the strongest baseline, said plainly in either direction."""
    means = {name: finite(estimate(section(saliency, name).get("cc"))["value"]) for name in saliency}
    model = means.pop("model")
    rivals = {name: mean for name, mean in means.items() if mean is not None}
    if model is None or not rivals:
        return ""
    strongest = max(rivals, key=lambda name: rivals[name])
    verdict = "above" if model > rivals[strongest] else "not above"
    return f", {verdict} the strongest baseline that never sees the image ({strongest}: {number(rivals[strongest])})"
