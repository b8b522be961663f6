"""The contact frame of a capsule on a plane, in Warp as in MuJoCo in C; importing this needs Warp."""

import warp as wp
from mujoco.mjx.third_party.mujoco_warp._src import collision_primitive
from mujoco.mjx.third_party.mujoco_warp._src.collision_primitive_core import mat23f

_original = collision_primitive.plane_capsule


@wp.func
def _plane_capsule(
    normal: wp.vec3, plane: wp.vec3, centre: wp.vec3, axis: wp.vec3, radius: float, half_length: float
) -> tuple[wp.vec2, mat23f, wp.mat33]:
    """Return distances, points and frame of the two contacts.

    Friction acts along the edges of a pyramid, so the frame's directions in the plane matter. C takes the
    capsule's axis, projected; Warp takes an axis of the world if the capsule stands within 30 degrees of the
    normal.
    """
    dist, points, _ = _original(normal, plane, centre, axis, radius, half_length)
    tangent = axis - normal * wp.dot(normal, axis)
    if wp.length(tangent) < 1e-6:  # no direction is left; the x axis, as in C
        tangent = wp.vec3(1.0, 0.0, 0.0)
    tangent = wp.normalize(tangent)
    return dist, points, wp.matrix_from_rows(normal, tangent, wp.cross(normal, tangent))


def install() -> None:
    """Make MuJoCo Warp compute the frame as C does in everything that is compiled from now on."""
    collision_primitive.plane_capsule = _plane_capsule
