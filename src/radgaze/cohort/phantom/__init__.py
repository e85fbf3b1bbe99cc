"""Made-up chest radiographs, read by made-up eyes, in the layouts of the real data sets."""

from radgaze.cohort.phantom.anatomy import Lesion, Radiograph, expose
from radgaze.cohort.phantom.reader import Recording, Session, read
from radgaze.cohort.phantom.thorax import Patient
from radgaze.cohort.phantom.trees import make_phantom

__all__ = ["Lesion", "Patient", "Radiograph", "Recording", "Session", "expose", "make_phantom", "read"]
