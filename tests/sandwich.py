"""The error of a least-squares fit clustered by run, as Bell and McCaffrey (2002) write it, with whole matrices."""

import numpy as np


def covariance(design, residuals, clusters):
    """(k, k) of design (n, k): residuals of each cluster times (I − H_g)^-½, H the fit's projection onto it."""
    inverse, moves = np.linalg.inv(design.T @ design), []
    for x, e in ((design[clusters == each], residuals[clusters == each]) for each in np.unique(clusters)):
        sizes, axes = np.linalg.eigh(np.eye(len(x)) - x @ inverse @ x.T)
        moves.append(inverse @ x.T @ (axes / np.sqrt(sizes) @ axes.T @ e))
    return np.transpose(moves) @ moves
