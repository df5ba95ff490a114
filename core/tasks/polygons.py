"""Areas that convex polygons share."""

from collections.abc import Sequence

Point = tuple[float, float]
Polygon = tuple[Point, ...]


def convex_hull(points: Sequence[Point]) -> Polygon:
    """The smallest convex polygon around points, in the order in which its area counts as positive.

    Args:
        points: any number, in any order.

    Returns:
        Its corners; fewer than three where the points lie on a line.

    Source:
        Andrew 1979, the monotone chain.

    Example:
        >>> convex_hull([(0, 0), (2, 0), (1, 1), (2, 2), (0, 2)])
        ((0, 0), (2, 0), (2, 2), (0, 2))
    """
    ordered = sorted(set(points))
    if len(ordered) < 3:
        return tuple(ordered)
    lower, upper = _chain(ordered), _chain(ordered[::-1])
    return (*lower[:-1], *upper[:-1])


def _chain(points: Sequence[Point]) -> list[Point]:
    chain: list[Point] = []
    for point in points:
        while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
            chain.pop()
        chain.append(point)
    return chain


def _turn(a: Point, b: Point, c: Point) -> float:
    """Twice the signed area of a triangle."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def area(polygon: Sequence[Point]) -> float:
    """Area by the shoelace formula, >= 0."""
    pairs = zip(polygon, (*polygon[1:], *polygon[:1]), strict=True)
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs)) / 2


def shared_area(a: Sequence[Point], b: Sequence[Point]) -> float:
    """Area that the convex hulls of two polygons share.

    Source:
        Sutherland and Hodgman 1974: one polygon is cut along each side of the other.

    Example:
        >>> shared_area([(0, 0), (2, 0), (2, 2), (0, 2)], [(1, 1), (3, 1), (3, 3), (1, 3)])
        1.0
    """
    left: Polygon = convex_hull(a)
    knife = convex_hull(b)
    if len(left) < 3 or len(knife) < 3:
        return 0.0
    for start, end in zip(knife, (*knife[1:], knife[0]), strict=True):
        left = _cut(left, start, end)
        if len(left) < 3:
            return 0.0
    return area(left)


def _cut(polygon: Polygon, start: Point, end: Point) -> Polygon:
    """What of a polygon lies on the inner side of a line."""
    kept: list[Point] = []
    for here, after in zip(polygon, (*polygon[1:], polygon[0]), strict=True):
        side_here, side_after = _turn(start, end, here), _turn(start, end, after)
        if side_here >= 0:
            kept.append(here)
        if side_here * side_after < 0:
            share = side_here / (side_here - side_after)
            kept.append((here[0] + share * (after[0] - here[0]), here[1] + share * (after[1] - here[1])))
    return tuple(kept)


def iou(a: Sequence[Point], b: Sequence[Point]) -> float:
    """Intersection over union of two convex hulls; 0 where both are empty."""
    shared = shared_area(a, b)
    union = area(convex_hull(a)) + area(convex_hull(b)) - shared
    return shared / union if union > 0 else 0.0
