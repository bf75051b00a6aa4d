"""The fidelity of stored labels, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import scipy.stats

from workflow import fidelity

P = np.random.Generator(np.random.PCG64([2])).dirichlet(np.full(10, 0.2), 50).astype(np.float32)


def test_divergence_is_scipys() -> None:
    q = np.roll(P, 1, axis=0)
    positive = np.maximum(P, 1e-6)
    # scipy's function normalizes both.
    np.testing.assert_allclose(
        fidelity.divergence(q, positive), scipy.stats.entropy(q, positive, axis=1), rtol=1e-5
    )
    np.testing.assert_allclose(fidelity.divergence(P, P), 0, atol=1e-12)
    # The class that p excludes: 1 · log(1 / tiny).
    np.testing.assert_allclose(
        fidelity.divergence(np.eye(2)[:1], np.eye(2)[1:]), -np.log(np.finfo(np.float32).tiny)
    )


def test_less_is_stored_and_more_is_lost() -> None:
    keys = [str(i) for i in range(len(P))]
    kl, sizes = zip(
        *(
            (fidelity.divergence(q, P).mean(), size)
            for q, size in (fidelity.stored(keys, P, k) for k in (0, 5, 3, 1))
        )
    )
    assert 0 < kl[0] < 1e-4 and kl[0] < kl[1] < kl[2] < kl[3]
    assert sizes[1] > sizes[2] > sizes[3]
    q, _ = fidelity.stored(["a"], np.float32([[0.7, 0.2, 0.1, 0.0]]), 1)
    np.testing.assert_allclose(q, [[0.7, 0.1, 0.1, 0.1]], atol=1e-6)
