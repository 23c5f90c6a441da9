"""The L-infinity projection onto a hyperplane within the pixel box, the inner step of FAB, by Newton's method.

Of all d with <w, t + d> = b and 0 <= t + d <= 1, it is the one whose largest component is smallest. Let the gap be
c = |<w, t> - b|. A component helps to close it by moving in one direction only, at most to the box: by ``room`` = t or
1 - t. With the same allowance r for all components, |d_i| = min(r, room_i), and the part of the gap that is closed,

    g(r) = sum |w_i| min(r, room_i),

is increasing, concave and piecewise linear. The r to find solves g(r) = c. Newton's method from r = 0 never
oversteps, because a concave function lies below its tangents, and ends after finitely many steps, because each but the
last passes a kink. Sorting the kinks finds the same r at several times the cost.
"""

import torch


def project_linf(points: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The smallest moves d (N, D), measured by their largest component, of ``points`` onto their hyperplanes.

    Where the box does not reach the hyperplane, d goes as near as the box allows. Components with w = 0 stay.

    Args:
        points: t (N, D) in [0,1].
        w, b: normals (N, D) and offsets (N,) of the hyperplanes <w, x> = b.
    """
    gap = _dot(w, points) - b
    # Where the gap is positive, components with w > 0 go down (towards 0) and those with w < 0 up (towards 1).
    down = (w > 0) == (gap >= 0)[:, None]
    weight = w.abs()
    room = torch.where(down, points, 1 - points)
    moved = torch.minimum(room, _allowance(weight, room, gap.abs())[:, None])
    return torch.where(down, -moved, moved).mul_(weight != 0)


def _allowance(weight: torch.Tensor, room: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
    """The r (N,) with sum(weight * min(r, room)) = gap; 1, the whole box, where there is none."""
    mask, part = torch.empty_like(weight), torch.empty_like(weight)
    slope = _dot(weight, torch.gt(room, 0, out=mask))
    r = torch.where(slope > 0, gap / slope, 1.0)
    while True:
        previous, slope = slope, _dot(weight, torch.gt(room, r[:, None], out=mask))
        left = gap - _dot(weight, torch.minimum(room, r[:, None], out=part))
        # Without slope nothing more can be closed: either all is, or the box does not reach the hyperplane.
        r = torch.where(slope > 0, r + left / slope, torch.where(left > 0, 1.0, r))
        # No component reached the box: this piece of g was the last. (NaN is never smaller.)
        if not (slope < previous).any():
            return r


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """<a, b> of each row: (N, D), (N, D) to (N,)."""
    return torch.linalg.vecdot(a, b)
