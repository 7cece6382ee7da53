"""Classifier-free guidance, judged by a plain classifier: the embedded digit scans."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from trainer.images import ImageSpec
from trainer.models.diffusion import DiffusionConfig
from trainer.noise import Noise

STEPS, BATCH, SAMPLES = 400, 128, 300


def test_the_share_of_samples_of_the_asked_class_rises_with_the_scale():
    scans = load_digits()
    images = torch.from_numpy(scans.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(scans.target).long()
    torch.manual_seed(0)
    config = DiffusionConfig(
        kind="diffusion",
        schedule={"kind": "learned", "gamma_0": -8},
        denoiser={"network": {"kind": "mlp", "width": 128, "depth": 1}, "conditions": {"label": {"kind": "class"}}},
        condition_dropout=0.2,
    )
    model = config.build(ImageSpec(1, 8, 8, 17, classes=10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(STEPS):
        positions = torch.arange(step * BATCH, (step + 1) * BATCH)
        chosen = (positions * 1009) % len(images)  # a prime: all of them, in a mixed order
        noise = Noise(0, "train", positions, BATCH)
        elbo = model(images[chosen], {"label": labels[chosen]}, noise, torch.tensor(0.0))
        optimizer.zero_grad()
        elbo.loss.mean().backward()
        optimizer.step()

    classifier = LogisticRegression(max_iter=300).fit(scans.data / 16, scans.target)
    asked = torch.arange(SAMPLES) % 10

    def share(guidance):
        noise = Noise(1, "sample", torch.arange(SAMPLES))
        settings = {"sampler": "ddim", "steps": 15, "spacing": "log_snr", "guidance": guidance}
        with torch.no_grad():
            samples = model.sample(noise, {"label": asked}, **settings)
        return float((classifier.predict(samples.flatten(1).numpy() / 16) == asked.numpy()).mean())

    shares = [share(guidance) for guidance in (0.0, 1.0, 3.0)]
    assert shares == sorted(shares)
    assert shares[0] < 0.2  # the condition is ignored: one in ten by chance
    assert shares[1] > 0.5
    assert shares[2] > shares[1] + 0.05
