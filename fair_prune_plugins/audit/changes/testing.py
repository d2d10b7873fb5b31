"""McNemar's exact test of dense against pruned."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.errors import MissingDependencyError
from fair_prune_plugins.postprocessing.scores import FloatArray

NO_SCIPY = "the exact McNemar test needs scipy: pip install 'fair-prune-plugins[workflow]'"


def mcnemar(lost: npt.ArrayLike, gained: npt.ArrayLike) -> FloatArray:
    """Two-sided p of McNemar's exact (binomial) test, for arrays of any shape.

    Args:
        lost: people right under the first model only.
        gained: people right under the second model only.

    Returns:
        float64 of the same shape; 1 where nobody changed.

    Raises:
        MissingDependencyError: scipy is not installed.
    """
    try:
        from scipy.stats import binom
    except ImportError as error:
        raise MissingDependencyError(NO_SCIPY) from error
    one, other = np.asarray(lost, dtype=np.int64), np.asarray(gained, dtype=np.int64)
    tail = binom.cdf(np.minimum(one, other), one + other, 0.5)
    return np.asarray(np.minimum(1.0, 2.0 * tail), dtype=np.float64)
