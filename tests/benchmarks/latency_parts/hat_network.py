"""The latency predictor of HAT (Wang et al., ACL 2020, arXiv 2005.14187; `latency_predictor.py` in its repository).

Four hidden layers of 400 with ReLU; features and latency divided by constants; squared error, Adam with learning
rate 1e-5, 5,000 steps of 128 rows drawn without replacement. Where there are fewer rows than that, a step takes all.
Its published split and weights are unseeded; here both follow the seed.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import nn

from predictors.model import Matrix

FEATURE_NORM = np.array([640, 6, 2048, 6, 640, 6, 2048, 6, 6, 2], dtype=np.float64)
LATENCY_NORM_MS = (("gpu", 200.0), ("raspberrypi", 5000.0), ("xeon", 300.0))
"""By a part of the file's name, as its configurations say."""
HIDDEN = (400, 400, 400, 400)
STEPS, BATCH, LEARNING_RATE = 5000, 128, 1e-5


def latency_norm(name: str, seconds_N: Matrix) -> float:
    """Seconds the latencies are divided by; for a table that HAT has no configuration of, their largest."""
    known = next((norm / 1e3 for part, norm in LATENCY_NORM_MS if part in name), None)
    return known or float(seconds_N.max())


def predict(features_NF: Matrix, seconds_N: Matrix, features_QF: Matrix, norm: float, seed: int) -> Matrix:
    """Train on features that are already divided by constants, and predict seconds [Q]."""
    torch.manual_seed(seed)
    network = nn.Sequential()
    for i, (inputs, outputs) in enumerate(pairwise((features_NF.shape[1], *HIDDEN, 1))):
        if i:
            network.append(nn.ReLU())
        network.append(nn.Linear(inputs, outputs))
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    x_NF = torch.tensor(features_NF, dtype=torch.float32)
    y_N = torch.tensor(seconds_N / norm, dtype=torch.float32)
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        rows = torch.from_numpy(rng.permutation(len(y_N))[:BATCH])
        loss = nn.functional.mse_loss(network(x_NF[rows]).squeeze(1), y_N[rows])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    with torch.no_grad():
        predicted_Q = network(torch.tensor(features_QF, dtype=torch.float32)).squeeze(1)
    return np.asarray(predicted_Q.double().numpy() * norm)
