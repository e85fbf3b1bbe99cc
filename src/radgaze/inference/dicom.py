"""What a network said of a DICOM radiograph, as DICOM objects of the same study: for research, and marked so.

``sc``  Secondary Capture: the picture of :mod:`radgaze.inference.overlays`, RGB, RLE lossless.
``sr``  Comprehensive SR after TID 1500: each class's probability with its interval, and the algorithm.
``pm``  Parametric Map: the predicted attention and the class activation maps, 32-bit float.

Each is a series of its own with new UIDs (random, under 2.25), so making one twice makes two objects. Of the source's
header go over: patient, study, the reference to the image, orientation, spacing and lossy compression. A missing or
invalid date, sex or number is left empty. Without a valid identity (study, series and instance UIDs, a patient's name
and ID that are valid where they are given) nothing is made: an object that lands with the wrong patient is worse than
none. Text is UTF-8.

A Parametric Map must have a frame of reference, and a projection radiograph has none: nothing says how far from the
detector a structure is. The map gets one of its own, in the plane of the image: the origin is the centre of the
source's first pixel, the axes are the source's Patient Orientation (or, where that is absent, left and feet for the
views AP and PA), and lengths are those of the source's pixel spacing, that is at the detector or as calibrated. No
other object shares that frame of reference. Without orientation or spacing no map is made.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom import Dataset, config, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless, generate_uid
from pydicom.valuerep import PersonName, validate_value

from radgaze import __version__
from radgaze.errors import InputError
from radgaze.inference.predictor import Prediction
from radgaze.report.figures import relative_density

__all__ = ["Header", "class_code", "make", "map_values"]

logging.getLogger("highdicom").setLevel(logging.ERROR)  # what it says below that quotes patients' names

MANUFACTURER, UTF8, SCHEME = "radgaze", "ISO_IR 192", "99RADGAZE"
LONGEST_MAP = 640  # pixels of a parametric map's longer side
IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
OPTIONAL = {
    "PatientBirthDate": "DA",
    "StudyDate": "DA",
    "StudyTime": "TM",
    "AccessionNumber": "SH",
    "StudyID": "SH",
    "ReferringPhysicianName": "PN",
}
DIRECTIONS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
NUMBERS = {"sc": 9901, "sr": 9902, "pm": 9903}  # of the series: beyond those that devices give
# Class names that have a concept in SNOMED CT; the others get a private one.
CONCEPTS = {
    "atelectasis": ("46621007", "SCT", "Atelectasis"),
    "cardiomegaly": codes.SCT.Cardiomegaly,
    "chf": codes.SCT.CongestiveHeartFailure,
    "congestive heart failure": codes.SCT.CongestiveHeartFailure,
    "pleural effusion": codes.SCT.PleuralEffusion,
    "pneumonia": ("233604007", "SCT", "Pneumonia"),
    "pneumothorax": codes.SCT.Pneumothorax,
}


@dataclass(frozen=True, eq=False)
class Header:
    """What an object made of a radiograph takes over from it.

    Attributes:
        content: Patient, study and references, valid and complete.
        orientation: Directions of the rows and of the columns, as ``("L", "F")``; None where unknown.
        spacing: mm between rows and between columns; None where unknown.
        laterality: ``"R"``, ``"L"``, ``""`` where unknown; None for a chest, which has none.
        burned_in: ``"YES"`` or ``"NO"``, whether the pixels show who the patient is; None where the source is silent.
    """

    content: Dataset
    orientation: tuple[str, str] | None
    spacing: tuple[float, float] | None
    laterality: str | None
    burned_in: str | None

    @classmethod
    def read(cls, path: Path) -> Header:
        """The header of a DICOM file.

        Raises:
            InputError: Not DICOM, or without a valid identity. Never quotes the header.
        """
        shown = repr(str(path))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                source = dcmread(path, stop_before_pixels=True)
        except InvalidDicomError:
            raise InputError(
                f"{shown} is no DICOM file, so there is no study that a DICOM object could belong to; leave --dicom "
                "away for it."
            ) from None
        content = Dataset()
        content.SpecificCharacterSet = UTF8
        for keyword in IDENTITY:
            value = _text(source, keyword, "UI")
            if not value:
                raise InputError(
                    f"DICOM {shown} has no valid {keyword}, so no DICOM object can refer to it; correct its header."
                )
            setattr(content, keyword, UID(value))
        for keyword, vr in (("PatientName", "PN"), ("PatientID", "LO")):
            value = _text(source, keyword, vr)
            if value is None:
                raise InputError(
                    f"DICOM {shown} has an invalid {keyword}: an object made of it could land with the wrong patient; "
                    "correct its header."
                )
            setattr(content, keyword, PersonName(value) if vr == "PN" else value)
        for keyword, vr in OPTIONAL.items():
            setattr(content, keyword, _text(source, keyword, vr) or "")
        sex = _text(source, "PatientSex", "CS")
        content.PatientSex = sex if sex in ("M", "F", "O") else ""
        content.Rows, content.Columns = source.Rows, source.Columns
        if str(source.get("LossyImageCompression", "")) == "01":
            content.LossyImageCompression = "01"
            for keyword, vr in (("LossyImageCompressionRatio", "DS"), ("LossyImageCompressionMethod", "CS")):
                if value := _text(source, keyword, vr):
                    setattr(content, keyword, value)
        side = _text(source, "Laterality", "CS")
        is_chest = _text(source, "BodyPartExamined", "CS") == "CHEST"
        burned_in = _text(source, "BurnedInAnnotation", "CS")
        return cls(
            content,
            _orientation(source),
            _spacing(source),
            None if is_chest else side if side in ("R", "L") else "",
            burned_in if burned_in in ("YES", "NO") else None,
        )


def make(kind: str, header: Header, prediction: Prediction, drawn: NDArray[np.uint8] | None = None) -> Dataset:
    """The ``"sc"``, ``"sr"`` or ``"pm"`` of a prediction; ``drawn`` (H, W, 3) is its picture, for ``"sc"``.

    Raises:
        InputError: The source lacks what the object must have. Never quotes the header.
    """
    makers: dict[str, Callable[[], Dataset]] = {
        "sc": lambda: _secondary_capture(header, drawn),
        "sr": lambda: _report(header, prediction),
        "pm": lambda: _parametric_map(header, prediction),
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # highdicom's quote the patient's name
            return makers[kind]()
    except InputError:
        raise
    except Exception as error:  # whatever an odd header makes highdicom raise, which may quote it
        raise InputError(
            f"The header of DICOM {prediction.picture.name!r} does not allow a DICOM object of kind {kind!r} "
            f"({type(error).__name__}); correct it, or leave {kind} away."
        ) from None


def class_code(name: str) -> CodedConcept:
    """A class's concept: SNOMED CT where the name has one, else private, with a code made of the name alone."""
    known = CONCEPTS.get(name.strip().lower())
    if known is not None:
        return CodedConcept(known[0], known[1], known[2])
    digest = hashlib.sha256(name.encode()).hexdigest()[:10].upper()
    return CodedConcept(f"CLASS-{digest}", SCHEME, _long_string(name) or "unnamed")


def map_values(prediction: Prediction) -> dict[str, NDArray[np.float32]]:
    """What a parametric map holds, by map: float32 over exactly the source image, at most 640 pixels a side.

    Attention is in multiples of an even spread over the image, class activations are as the network gives them.
    """
    height, width = prediction.picture.pixels.shape
    scale = min(1.0, LONGEST_MAP / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    spread = {name: prediction.on_image(values, size) for name, values in prediction.maps().items()}
    if "attention" in spread:
        spread["attention"] = relative_density(spread["attention"]).astype(np.float32)
    return spread


# ---- the three objects


def _secondary_capture(header: Header, drawn: NDArray[np.uint8] | None) -> Dataset:
    assert drawn is not None
    made = hd.sc.SCImage.from_ref_dataset(
        header.content,
        drawn,
        "RGB",
        8,
        "PATIENT",
        generate_uid(None),
        NUMBERS["sc"],
        generate_uid(None),
        1,
        MANUFACTURER,
        patient_orientation=("L", "F"),
        transfer_syntax_uid=RLELossless,
        series_description="radgaze prediction, research only",
        manufacturer_model_name="radgaze",
        software_versions=__version__,
        specific_character_set=UTF8,
    )
    made.PatientOrientation = list(header.orientation or ())
    made.ConversionType = "WSD"
    _place_body_part(made, header)
    made.DerivationDescription = "Picture of a neural network's prediction beside the source image; research only."
    if header.burned_in:
        made.BurnedInAnnotation = header.burned_in  # nothing is drawn that names a patient: it is as in the source
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if keyword in header.content:
            made[keyword] = header.content[keyword]
    source = Dataset()
    source.ReferencedSOPClassUID = header.content.SOPClassUID
    source.ReferencedSOPInstanceUID = header.content.SOPInstanceUID
    source.SpatialLocationsPreserved = "NO"
    source.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)]
    made.SourceImageSequence = [source]
    return made


def _report(header: Header, prediction: Prediction) -> Dataset:
    card, content = prediction.card, header.content
    digest = str(card.facts.get("weights", ""))
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(None, entropy_srcs=["radgaze", __version__, digest]),
        name="radgaze",
        manufacturer_name=MANUFACTURER,
        model_name=card.method,
    )
    algorithm = hd.sr.AlgorithmIdentification(
        name=f"radgaze {card.method}",
        version=__version__,
        manufacturer=MANUFACTURER,
        parameters=[
            f"SHA-256 of the weights: {digest}",
            "probabilities are calibrated on validation studies, with 95 % intervals"
            if prediction.intervals
            else "probabilities are not calibrated",
            "research only, not for diagnosis",
        ],
    )
    source = hd.sr.SourceImageForMeasurementGroup(content.SOPClassUID, content.SOPInstanceUID)
    groups = []
    for name, value in prediction.probabilities.items():
        measured = [_measurement(CodedConcept.from_code(codes.DCM.Probability), value)]
        if prediction.intervals:
            low, high = prediction.intervals[name]
            measured += [_measurement(_LOW, low), _measurement(_HIGH, high)]
        likeliest = codes.SCT.Yes if name == prediction.predicted else codes.SCT.No
        groups.append(
            hd.sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=hd.sr.TrackingIdentifier(uid=generate_uid(None), identifier=name),
                finding_type=class_code(name),
                algorithm_id=algorithm,
                measurements=measured,
                qualitative_evaluations=[hd.sr.QualitativeEvaluation(_LIKELIEST, likeliest)]
                if prediction.predicted is not None
                else None,
                source_images=[source],
            )
        )
    observer = hd.sr.ObserverContext(codes.DCM.Device, device)
    made = hd.sr.ComprehensiveSR(
        evidence=[content],
        content=hd.sr.MeasurementReport(
            hd.sr.ObservationContext(observer_device_context=observer),
            CodedConcept.from_code(codes.SCT.PlainRadiography),
            groups,
        )[0],
        series_instance_uid=generate_uid(None),
        series_number=NUMBERS["sr"],
        sop_instance_uid=generate_uid(None),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="radgaze",
        software_versions=__version__,
        series_description="radgaze probabilities, research only",
        is_complete=True,
        coding_schemes=[_scheme()],
        specific_character_set=UTF8,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    return made


def _parametric_map(header: Header, prediction: Prediction) -> Dataset:
    shown = repr(prediction.picture.name)
    if header.orientation is None:
        raise InputError(
            f"DICOM {shown} does not say how the patient lies in it (Patient Orientation, or View Position AP or PA), "
            "which a Parametric Map must; leave pm away."
        )
    if header.spacing is None:
        raise InputError(
            f"DICOM {shown} gives no spacing of its pixels in mm, which a Parametric Map must; leave pm away."
        )
    values = map_values(prediction)
    height, width = prediction.picture.pixels.shape
    rows, columns = next(iter(values.values())).shape
    step = height / rows, width / columns
    along, down = (np.array(DIRECTIONS[letter], float) for letter in header.orientation)
    spacing = header.spacing[0] * step[0], header.spacing[1] * step[1]
    corner = (step[1] - 1) / 2 * header.spacing[1] * along + (step[0] - 1) / 2 * header.spacing[0] * down
    source = Dataset()
    source.update(header.content)
    source.FrameOfReferenceUID = generate_uid(None)
    source.ImageOrientationPatient = [*along, *down]
    source.ImagePositionPatient = [0.0, 0.0, 0.0]
    source.PixelSpacing, source.SliceThickness = list(header.spacing), None
    low, high = min(float(one.min()) for one in values.values()), max(float(one.max()) for one in values.values())
    made = hd.pm.ParametricMap(
        [source],
        np.stack(list(values.values()), -1)[None],
        generate_uid(None),
        NUMBERS["pm"],
        generate_uid(None),
        1,
        MANUFACTURER,
        "radgaze",
        __version__,
        str(prediction.card.facts.get("weights", "none"))[:64],
        False,
        [[_mapping(index, name, one)] for index, (name, one) in enumerate(values.items())],
        voi_lut_transformations=[
            hd.VOILUTTransformation(
                window_center=(low + high) / 2, window_width=max(high - low, 1e-6), voi_lut_function="LINEAR_EXACT"
            )
        ],
        pixel_measures=hd.PixelMeasuresSequence(spacing, 1.0),
        plane_orientation=hd.PlaneOrientationSequence("PATIENT", [*along, *down]),
        plane_positions=[hd.PlanePositionSequence("PATIENT", [float(x) for x in corner])],
        content_label="PREDICTION",
        content_description="Neural network's attention and class activations",
        image_flavor="STATIC",
        series_description="radgaze maps, research only",
        coding_schemes=[_scheme()],
        specific_character_set=UTF8,
    )
    _index_maps(made)
    _place_body_part(made, header)
    return made


# ---- parts


def _index_maps(made: Dataset) -> None:
    """Tell the frames apart by what they show; highdicom indexes their position alone, which is the same for all."""
    index = Dataset()
    index.DimensionOrganizationUID = made.DimensionIndexSequence[0].DimensionOrganizationUID
    index.DimensionIndexPointer, index.FunctionalGroupPointer = 0x0040_9210, 0x0040_9096
    index.DimensionDescriptionLabel = "Map"
    made.DimensionIndexSequence.append(index)
    for number, frame in enumerate(made.PerFrameFunctionalGroupsSequence, 1):
        frame.FrameContentSequence[0].DimensionIndexValues = [1, number]


def _long_string(text: str) -> str:
    """On one line and within 64 bytes: validators count the bytes of what the standard limits to 64 characters."""
    text = " ".join(text.replace("\\", "/").split())
    if len(text.encode()) <= 64:
        return text
    return text.encode()[:61].decode(errors="ignore") + "…"


def _code(value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value, SCHEME, meaning)


_LOW = _code("PROBABILITY-LOW", "Lower limit of the probability, 95 % interval")
_HIGH = _code("PROBABILITY-HIGH", "Upper limit of the probability, 95 % interval")
_LIKELIEST = _code("LIKELIEST", "Likeliest of the classes")
_ATTENTION = _code("ATTENTION", "Expected visual attention relative to an even spread")


def _scheme() -> Any:
    return hd.coding_schemes.CodingSchemeIdentificationItem(
        SCHEME,
        name="radgaze classes and quantities; CLASS- codes are digests of class names",
        version="1",
        responsible_organization=MANUFACTURER,
    )


def _measurement(name: CodedConcept, value: float) -> Any:
    return hd.sr.Measurement(name=name, value=float(value), unit=codes.UCUM.NoUnits)


def _mapping(index: int, name: str, values: NDArray[np.float32]) -> Any:
    attention, subject = name == "attention", name.removeprefix("cam:")
    return hd.pm.RealWorldValueMapping(
        lut_label="ATTENTION" if attention else f"CAM {index}",
        lut_explanation=str(_ATTENTION.meaning) if attention else _long_string(f"Class activation: {subject}"),
        unit=codes.UCUM.NoUnits,
        value_range=(float(values.min()), float(values.max())),
        slope=1.0,
        intercept=0.0,
        quantity_definition=_ATTENTION if attention else class_code(subject),
    )


def _place_body_part(made: Dataset, header: Header) -> None:
    """What the standard asks for: no laterality of what is not paired, and one, if empty, of anything else."""
    if header.laterality is None:
        made.BodyPartExamined = "CHEST"
    else:
        made.Laterality = header.laterality


def _text(source: Dataset, keyword: str, vr: str) -> str | None:
    """A single value as text: ``""`` where it is absent, None where it is not valid."""
    try:
        element = source[keyword]
        value = element.value
    except KeyError:
        return ""
    except Exception:  # a value that cannot even be decoded
        return None
    if value is None or str(value) == "":
        return ""
    if element.VM != 1:
        return None
    text = str(value).strip()
    try:
        validate_value(vr, text, config.RAISE)
    except ValueError:
        return None
    return text


def _orientation(source: Dataset) -> tuple[str, str] | None:
    letters = [str(one).strip() for one in source.get("PatientOrientation") or []]
    if len(letters) == 2 and set(letters) <= set(DIRECTIONS):
        first, second = (np.flatnonzero(DIRECTIONS[letter])[0] for letter in letters)
        return (letters[0], letters[1]) if first != second else None
    if not letters and str(source.get("ViewPosition", "")).strip() in ("AP", "PA"):
        return "L", "F"
    return None


def _spacing(source: Dataset) -> tuple[float, float] | None:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        try:
            rows, columns = (float(value) for value in source.get(keyword) or ())
        except (TypeError, ValueError):
            continue
        if np.isfinite([rows, columns]).all() and min(rows, columns) > 0:
            return rows, columns
    return None
