"""Runs in River's own environment: a file of rows -> rows a second as JSON."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from river import facto, optim


def main(file: str) -> None:
    """One pass: each row is predicted, then learned."""
    with np.load(file) as rows:
        places, labels = rows["places"].tolist(), rows["labels"].astype(bool).tolist()
    made = [{str(value): 1.0 for value in row} for row in places]
    model = facto.FMClassifier(
        n_factors=16, weight_optimizer=optim.AdaGrad(0.05), latent_optimizer=optim.AdaGrad(0.05), seed=1
    )
    begun = time.perf_counter()
    for row, label in zip(made, labels, strict=True):
        model.predict_proba_one(row)
        model.learn_one(row, label)
    print(json.dumps({"examples_per_s": len(made) / (time.perf_counter() - begun)}))


if __name__ == "__main__":
    main(sys.argv[1])
