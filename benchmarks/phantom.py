"""How long a made-up radiograph takes, and how hard each difficulty is for a plain classifier.

    python benchmarks/phantom.py [--images N]

The classifier is logistic regression on the 40 first principal components of 48 x 40 pixels: no network, no
augmentation. Two thirds of the images teach it, the rest test it; all are of different patients. Chance is a macro AUC
of 0.5.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from radgaze.cohort.phantom.anatomy import CLASSES, expose

DIFFICULTIES = (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)


def seconds(size: tuple[int, int], images: int) -> float:
    """CPU seconds of one image, the mean of several."""
    expose("CHF", size=size)
    start = time.process_time()
    for patient in range(images):
        expose(CLASSES[patient % 3], patient=patient, size=size)
    return (time.process_time() - start) / images


def auc(difficulty: float, images: int) -> float:
    """One-vs-rest macro AUC on the last third of the images."""
    labels = np.arange(images) % 3
    drawn = [
        expose(CLASSES[label], seed=9, patient=patient, size=(96, 80), difficulty=difficulty).pixels
        for patient, label in enumerate(labels)
    ]
    pixels = np.stack(drawn).reshape(images, 48, 2, 40, 2).mean((2, 4)).reshape(images, -1)
    train = 2 * images // 3
    model = make_pipeline(StandardScaler(), PCA(40, random_state=0), LogisticRegression(C=0.1, max_iter=500))
    model.fit(pixels[:train], labels[:train])
    return float(roc_auc_score(labels[train:], model.predict_proba(pixels[train:]), multi_class="ovr"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600, help="images for each difficulty (default 600)")
    images = parser.parse_args().images
    for size, count in (((512, 428), 12), ((768, 640), 9), ((1024, 852), 6), ((3056, 2544), 2)):
        print(f"{size[0]:>4} x {size[1]:<4}  {seconds(size, count):6.2f} s of CPU an image", flush=True)
    for difficulty in DIFFICULTIES:
        print(f"difficulty {difficulty:<4}  macro AUC {auc(difficulty, images):.3f}", flush=True)


if __name__ == "__main__":
    main()
