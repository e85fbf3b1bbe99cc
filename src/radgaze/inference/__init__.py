"""What a trained run is used for: predicting and being measured."""

from radgaze.inference.engine import open_model
from radgaze.inference.evaluation import evaluate
from radgaze.inference.exporter import export
from radgaze.inference.grad_cam import grad_cam
from radgaze.inference.predict import predict_studies
from radgaze.inference.predictor import Failure, Prediction, Predictor, load
from radgaze.inference.redundancy import measure_redundancy
from radgaze.inference.reproduction import reproduce

__all__ = [
    "Failure",
    "Prediction",
    "Predictor",
    "evaluate",
    "export",
    "grad_cam",
    "load",
    "measure_redundancy",
    "open_model",
    "predict_studies",
    "reproduce",
]
