"""Masks for the tests of evaluation: random ones, and those that break careless code."""

import numpy as np


def blobs(rng, size=(48, 64), ignored=False):
    """A body and a panel of random rectangles and lines, and a prediction that is off by a bit."""
    truth = np.zeros(size, np.uint8)
    for _ in range(rng.integers(1, 6)):
        y, x = rng.integers(-5, size[0]), rng.integers(-5, size[1])
        h, w = rng.integers(1, 20, 2)
        truth[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = rng.integers(0, 3)
    pred = np.roll(truth, rng.integers(-3, 4, 2), (0, 1))
    noise = rng.random(size) < 0.02
    pred[noise] = rng.integers(0, 3, int(noise.sum()))
    if ignored:
        truth[rng.random(size) < 0.05] = 255
        truth[:6, :9] = 255
    return pred, truth


def adversarial():
    """(name, pred, truth) of masks at the frame's border, of one pixel, thin, full, empty."""
    empty, full = np.zeros((20, 30), np.uint8), np.full((20, 30), 1, np.uint8)
    pixel, corner, frame, line, stripe = (empty.copy() for _ in range(5))
    pixel[7, 11] = 2
    corner[0, 0] = corner[-1, -1] = 1
    frame[[0, -1]] = 1
    frame[:, 0] = 1
    frame[:, -1] = 2
    line[:, 10], line[5] = 1, 2
    stripe[:, :15] = 1
    chess = (np.indices((20, 30)).sum(0) % 2).astype(np.uint8)
    masks = {
        "empty": empty,
        "full": full,
        "pixel": pixel,
        "corner": corner,
        "frame": frame,
        "line": line,
        "stripe": stripe,
        "chess": chess,
    }
    for a, pred in masks.items():
        for b, truth in masks.items():
            yield f"{a} for {b}", pred, truth
    yield "one pixel's image", np.ones((1, 1), np.uint8), np.ones((1, 1), np.uint8)
    yield "one row", np.array([[0, 1, 1, 2, 0]], np.uint8), np.array([[1, 1, 0, 2, 2]], np.uint8)


def parts(labels):
    """bool masks of body, panel and craft."""
    return labels == 1, labels == 2, (labels == 1) | (labels == 2)
