"""Measures: pure functions from tensors to values, one module for each thing that is measured.

- :mod:`~radgaze.measures.saliency`: a predicted attention map against gaze; maps (B, h, w) to (B,).
  ``kld``, ``cc``, ``sim``, ``nss``, ``auc_judd``, ``shuffled_auc``, ``information_gain``, ``all_measures``.
- :mod:`~radgaze.measures.classification`: predicted probabilities (N, C) against classes or labels.
  ``accuracy``, ``balanced_accuracy``, ``auc``, ``auc_macro``, ``auc_micro``, ``average_precision``, ``ece``, ``brier``,
  ``nll``, ``confusion_matrix``, ``reliability``, ``roc_curve``, ``precision_recall_curve``, ``all_measures``.
- :mod:`~radgaze.measures.localisation`: a class activation map against a mask; (B, h, w) and (B, H, W) to (B,).
  ``pointing_game``, ``energy_inside``, ``iou``.
- :mod:`~radgaze.measures.statistics`: how sure a value is, and whether two methods differ.
  ``summary``, ``mean``, ``bootstrap``, ``paired_bootstrap``, ``delong``, ``delong_test``, ``delong_interval``,
  ``holm``.
"""

from radgaze.measures import classification, localisation, saliency, statistics

__all__ = ["classification", "localisation", "saliency", "statistics"]
