"""Pictures of MuJoCo scenes, by one ray through the centre of each pixel, on the device.

A picture depends on its own lane alone and works under any ``vmap``, whereas MJX's renderer draws a fixed
number of worlds. The tasks consist of planes, spheres, capsules, ellipsoids, cylinders and boxes; MJX's rays
support neither cylinders nor normals, and their arrays [pixels, 3] take five times as long on a CPU as
separate x, y and z.

Differs from MuJoCo's renderer: no shadows, reflections, highlights or tendons, no sites except those that a
task marks as geoms, and a texture is read at its nearest place. Pictures resemble MuJoCo's but do not equal
them. Distances are those of ``mj_ray``, except that a camera inside a body sees through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from popjax import tree

Vector = tuple[Array, Array, Array]
"""x, y and z, each [pixels]."""
GROUPS = 3
"""Groups of geoms that are drawn, from 0 on: MuJoCo's own choice."""
SKY_SIDE = 64
"""Most texels along a face of the sky; more would flicker in small pictures."""
_LEAST = 1e-9


class Hits(NamedTuple):
    """First hit of every ray.

    distance: float32 [pixels] from the camera, metres; inf if there is none.
    geom:     int32 [pixels]; -1 if there is none.
    texel:    int32 [pixels] place of the hit's colour among ``Paint.colours``.
    normal:   of the surface there, in the world's frame.
    """

    distance: Array
    geom: Array
    texel: Array
    normal: Vector


class Paint(NamedTuple):
    """Colours of a scene.

    colours: float32 [texels, 3] of all surfaces and of the sky, from 0 to 255.
    first:   int32 [ngeom] place of a geom's first colour.
    texture: float32 [ngeom, 2] texels along x and along y of a geom's texture, 1 without one.
    repeat:  float32 [ngeom, 2] copies of a texture over a metre of a plane.
    sky:     place of the first of the sky's six faces.
    side:    texels along a face of the sky.
    """

    colours: np.ndarray
    first: np.ndarray
    texture: np.ndarray
    repeat: np.ndarray
    sky: int
    side: int


def camera(model: Any, height: int, width: int, index: int = 0) -> Callable[[Any, Any], Array]:
    """Return ``(mjx.Model, mjx.Data) -> picture uint8 [H, W, 3]`` of a ``mujoco.MjModel`` by its camera
    ``index``.

    Kinematics, centres of mass and cameras of the data must have been computed.

    Raises:
        ValueError: the model shows geoms of kinds that cannot be drawn, or has lights that aim at a body.
    """
    if (model.light_mode > 2).any():  # mujoco.mjtCamLight: fixed, track and trackcom are below
        raise ValueError(
            "a light of this model aims at a body; fix its direction, or draw the model with mujoco.Renderer"
        )
    trace, paint = tracer(model, height, width, index), _paint(model)

    def picture(physics: Any, data: Any) -> Array:
        rays, hits = trace(physics, data)
        met = hits.geom >= 0
        light = _light(model, physics, data, data.cam_xpos[index], rays, hits)
        texel = jnp.where(met, hits.texel, _sky(paint, rays))
        colour = jnp.asarray(paint.colours)[texel]  # [pixels, 3]
        channels = [jnp.where(met, share, 1.0) * colour[:, c] for c, share in enumerate(light)]
        shown = jnp.stack([jnp.clip(channel, 0, 255) for channel in channels], -1)
        return shown.astype(jnp.uint8).reshape(height, width, 3)

    return picture


def tracer(model: Any, height: int, width: int, index: int = 0) -> Callable[[Any, Any], tuple[Vector, Hits]]:
    """Return ``(mjx.Model, mjx.Data) -> (directions of the rays in the world, their first hits)``, row by
    row."""
    kinds, seen, paint = _kinds(model), _directions(model, height, width, index), _paint(model)

    def trace(physics: Any, data: Any) -> tuple[Vector, Hits]:
        rays = _turned(data.cam_xmat[index], tuple(map(jnp.asarray, seen)))
        nothing = jnp.zeros(height * width)
        none = jnp.full(height * width, -1, jnp.int32)
        hits = Hits(nothing + jnp.inf, none, none, (nothing, nothing, nothing))
        for kind, geoms in kinds.items():
            shapes = (
                jnp.asarray(geoms, jnp.int32),
                jnp.asarray(model.geom_size[geoms], jnp.float32),
                data.geom_xpos[geoms] - data.cam_xpos[index],
                data.geom_xmat[geoms],
                *(jnp.asarray(part[geoms]) for part in (paint.first, paint.texture, paint.repeat)),
            )
            hits = jax.lax.scan(_nearer(_MEET[kind], rays), hits, shapes)[0]
        return rays, hits

    return trace


def _nearer(meet: Callable[..., tuple[Array, Vector]], rays: Vector) -> Callable[..., tuple[Hits, None]]:
    """Return the step of a scan over geoms of one kind."""

    def one(hits: Hits, shape: Any) -> tuple[Hits, None]:
        geom, size, place, frame, first, texture, repeat = shape
        # Start at the point of the ray nearest to the geom, which avoids small differences of large numbers.
        passed = _dot(tuple(place), rays)
        start = tuple(passed * ray - there for ray, there in zip(rays, place, strict=True))
        local, ray = _turned(frame.T, start), _turned(frame.T, rays)
        ahead, normal = meet(size, local, ray)
        distance = passed + ahead
        texel = jnp.broadcast_to(first, distance.shape)
        if meet is _plane:
            texel = first + _texel(size, _at(local, ray, ahead), texture, repeat)
        hit = Hits(distance, jnp.broadcast_to(geom, distance.shape), texel, _turned(frame, normal))
        return tree.where((distance >= 0) & (distance < hits.distance), hit, hits), None

    return one


# Every function below takes size [3], a point of the ray and its direction in the geom's frame, and returns
# how far ahead of that point the ray enters the geom, inf where it does not, and the normal there.


def _plane(size: Array, start: Vector, ray: Vector) -> tuple[Array, Vector]:
    ahead = -start[2] / jnp.minimum(ray[2], -_LEAST)
    x, y, _ = _at(start, ray, ahead)
    inside = ((size[0] <= 0) | (jnp.abs(x) <= size[0])) & ((size[1] <= 0) | (jnp.abs(y) <= size[1]))
    zero = jnp.zeros_like(x)
    return jnp.where(inside & (ray[2] < -_LEAST), ahead, jnp.inf), (zero, zero, zero + 1)


def _sphere(size: Array, start: Vector, ray: Vector) -> tuple[Array, Vector]:
    return _ellipsoid(jnp.broadcast_to(size[0], (3,)), start, ray)


def _ellipsoid(size: Array, start: Vector, ray: Vector) -> tuple[Array, Vector]:
    along = tuple(x / s for x, s in zip(ray, size, strict=True))
    ahead = _enters(tuple(x / s for x, s in zip(start, size, strict=True)), along, 1.0)
    x, y, z = _at(start, ray, ahead)
    return ahead, _unit((x / size[0] ** 2, y / size[1] ** 2, z / size[2] ** 2))


def _capsule(size: Array, start: Vector, ray: Vector) -> tuple[Array, Vector]:
    radius, half = size[0], size[1]
    side = _enters(start[:2], ray[:2], radius)
    z = start[2] + side * ray[2]
    end = jnp.sign(z) * half
    cap = _enters((start[0], start[1], start[2] - end), ray, radius)
    ahead = jnp.where(jnp.abs(z) <= half, side, jnp.where(jnp.isfinite(side), cap, jnp.inf))
    x, y, z = _at(start, ray, ahead)
    return ahead, _unit((x, y, z - jnp.clip(z, -half, half)))


def _cylinder(size: Array, start: Vector, ray: Vector) -> tuple[Array, Vector]:
    radius, half = size[0], size[1]
    side = _enters(start[:2], ray[:2], radius)
    side = jnp.where(jnp.abs(start[2] + side * ray[2]) <= half, side, jnp.inf)
    top = -jnp.sign(ray[2])
    cap = (top * half - start[2]) / jnp.where(jnp.abs(ray[2]) < _LEAST, _LEAST, ray[2])
    x, y, _ = _at(start, ray, cap)
    cap = jnp.where((x**2 + y**2 <= radius**2) & (jnp.abs(ray[2]) >= _LEAST), cap, jnp.inf)
    ahead, flat = jnp.minimum(side, cap), cap < side
    x, y, _ = _at(start, ray, ahead)
    return ahead, (
        jnp.where(flat, 0.0, x / radius),
        jnp.where(flat, 0.0, y / radius),
        jnp.where(flat, top, 0.0),
    )


def _box(size: Array, start: Vector, ray: Vector) -> tuple[Array, Vector]:
    slopes = [jnp.where(jnp.abs(x) < _LEAST, _LEAST, x) for x in ray]
    parts = list(zip(start, slopes, size, strict=True))
    enters = [(-jnp.sign(x) * s - o) / x for o, x, s in parts]
    leaves = [(jnp.sign(x) * s - o) / x for o, x, s in parts]
    ahead = jnp.maximum(jnp.maximum(*enters[:2]), enters[2])
    leave = jnp.minimum(jnp.minimum(*leaves[:2]), leaves[2])
    x, y, z = (jnp.where(ahead == enter, -jnp.sign(x), 0.0) for enter, x in zip(enters, slopes, strict=True))
    return jnp.where(ahead <= leave, ahead, jnp.inf), (x, y, z)


_MEET = {0: _plane, 2: _sphere, 3: _capsule, 4: _ellipsoid, 5: _cylinder, 6: _box}
"""By ``mujoco.mjtGeom``."""


def _enters(start: tuple[Array, ...], ray: tuple[Array, ...], radius: Array | float) -> Array:
    """Return the multiple of ``ray`` at which it enters a sphere about 0, or a circle; inf if it misses."""
    a = jnp.maximum(_dot(ray, ray), _LEAST**2)
    b, c = _dot(start, ray), _dot(start, start) - radius**2
    square = b**2 - a * c
    return jnp.where(square >= 0, (-b - jnp.sqrt(jnp.maximum(square, 0.0))) / a, jnp.inf)


def _dot(a: tuple[Array, ...], b: tuple[Array, ...]) -> Array:
    return sum((x * y for x, y in zip(a, b, strict=True)), start=jnp.float32(0))


def _at(start: Vector, ray: Vector, ahead: Array) -> Vector:
    """Return the point of the ray at a distance; 0 where the distance is infinite."""
    ahead = jnp.where(jnp.isfinite(ahead), ahead, 0.0)
    x, y, z = (o + ahead * d for o, d in zip(start, ray, strict=True))
    return x, y, z


def _unit(v: Vector) -> Vector:
    scale = jax.lax.rsqrt(jnp.maximum(_dot(v, v), 1e-30))
    return v[0] * scale, v[1] * scale, v[2] * scale


def _turned(frame: Array, v: tuple[Array, ...]) -> Vector:
    """Return ``frame`` [3, 3] times vectors."""
    x, y, z = (_dot(tuple(row), v) for row in frame)
    return x, y, z


def _directions(model: Any, height: int, width: int, index: int) -> tuple[np.ndarray, ...]:
    """Return the rays in the camera's frame, of length 1: it looks along -z, y is up."""
    reach = height / 2 / np.tan(np.radians(model.cam_fovy[index]) / 2)
    x, y = np.meshgrid(np.arange(width) + 0.5 - width / 2, height / 2 - 0.5 - np.arange(height))
    rays = np.stack([x.ravel(), y.ravel(), np.full(x.size, -reach)])
    return tuple(np.asarray(rays / np.linalg.norm(rays, axis=0), np.float32))


def _kinds(model: Any) -> dict[int, np.ndarray]:
    """Return the geoms that are seen, by kind."""
    _, opacity = _rgba(model)
    seen = np.flatnonzero((model.geom_group < GROUPS) & (opacity > 0))
    kinds = {int(kind): seen[model.geom_type[seen] == kind] for kind in np.unique(model.geom_type[seen])}
    if strange := sorted(kinds.keys() - _MEET.keys()):
        import mujoco

        names = ", ".join(mujoco.mjtGeom(kind).name for kind in strange)
        raise ValueError(f"cannot draw {names}; draw this model with mujoco.Renderer")
    return kinds


def _rgba(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return colours [ngeom, 3] in [0, 1] and opacities [ngeom]: the material's where a geom has MuJoCo's
    default."""
    plain = (model.geom_rgba == np.asarray([0.5, 0.5, 0.5, 1], np.float32)).all(1) & (model.geom_matid >= 0)
    rgba = model.geom_rgba.copy()
    rgba[plain] = model.mat_rgba[model.geom_matid[plain]]
    return rgba[:, :3], rgba[:, 3]


def _paint(model: Any) -> Paint:
    import mujoco

    colour = _rgba(model)[0]
    role = int(mujoco.mjtTextureRole.mjTEXROLE_RGB)
    texture, repeat = np.ones((model.ngeom, 2), np.float32), np.zeros((model.ngeom, 2), np.float32)
    first, parts, count = np.zeros(model.ngeom, np.int32), [], 0
    for geom, material in enumerate(model.geom_matid):
        image = np.full((1, 1, 3), 255, np.uint8)
        used = model.mat_texid[material, role] if material >= 0 else -1
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE and used >= 0:
            image = _texture(model, used)
            size = model.geom_size[geom, :2]
            across = np.where((size > 0) & ~model.mat_texuniform[material], 2 * size, 2)  # metres
            repeat[geom] = model.mat_texrepeat[material] / across
        texture[geom], first[geom] = image.shape[1::-1], count
        parts.append(image.reshape(-1, 3) * colour[geom])
        count += len(parts[-1])
    skies = np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX)
    sky = _faces(_texture(model, skies[0])) if len(skies) else np.zeros((6, 1, 1, 3), np.uint8)
    colours = np.concatenate([*parts, sky.reshape(-1, 3)]).astype(np.float32)
    return Paint(colours, first, texture, repeat, count, sky.shape[1])


def _texture(model: Any, index: int) -> np.ndarray:
    """Return a texture uint8 [H, W, 3]."""
    shape = model.tex_height[index], model.tex_width[index], model.tex_nchannel[index]
    start = model.tex_adr[index]
    image = model.tex_data[start : start + np.prod(shape)].reshape(shape)
    return np.broadcast_to(image[..., :3], (*shape[:2], 3))


def _faces(image: np.ndarray) -> np.ndarray:
    """Return the faces of the sky, uint8 [6, side, side, 3]."""
    side = min(image.shape[1], SKY_SIDE)
    faces = np.split(image, 6)
    return np.stack(
        [np.asarray(Image.fromarray(f).resize((side, side), Image.Resampling.BOX)) for f in faces]
    )


def _texel(size: Array, point: Vector, texture: Array, repeat: Array) -> Array:
    """Return the place of a plane's colour at ``point``, counted from the plane's first."""
    centred = jnp.where((size[0] > 0) & (size[1] > 0), 0.0, 0.5)
    u = (point[0] + size[0]) * repeat[0] - centred
    v = (size[1] - point[1]) * repeat[1] - centred
    column, row = (
        jnp.minimum(jnp.floor((x - jnp.floor(x)) * n), n - 1) for x, n in zip((u, v), texture, strict=True)
    )
    return (row * texture[0] + column).astype(jnp.int32)


def _sky(paint: Paint, rays: Vector) -> Array:
    """Return the place of the sky's colour in every direction: faces +x, -x, +y, -y, +z, -z of OpenGL's cube
    map, which lies on its back, y up."""
    x, y, z = rays[0], rays[2], -rays[1]
    ax, ay, az = jnp.abs(x), jnp.abs(y), jnp.abs(z)
    by_x, by_y = (ax >= ay) & (ax >= az), ay >= az
    face = jnp.where(
        by_x, jnp.where(x > 0, 0, 1), jnp.where(by_y, jnp.where(y > 0, 2, 3), jnp.where(z > 0, 4, 5))
    )
    s = jnp.where(by_x, -jnp.sign(x) * z, jnp.where(by_y, x, jnp.sign(z) * x))
    t = jnp.where(by_x, -y, jnp.where(by_y, jnp.sign(y) * z, -y))
    along = jnp.maximum(jnp.maximum(ax, ay), az)
    column, row = (
        jnp.clip(jnp.floor((c / along + 1) / 2 * paint.side), 0, paint.side - 1).astype(jnp.int32)
        for c in (s, t)
    )
    return paint.sky + (face * paint.side + row) * paint.side + column


def _light(model: Any, physics: Any, data: Any, eye: Array, rays: Vector, hits: Hits) -> list[Array]:
    """Return the red, green and blue light that the surfaces reflect, [pixels] each: that of the headlight,
    which shines from the camera, and of the scene's lights, none of which fades with distance."""
    head = model.vis.headlight
    facing = jnp.maximum(-_dot(hits.normal, rays), 0.0)
    on = float(head.active != 0)
    light = [on * (a + d * facing) for a, d in zip(head.ambient, head.diffuse, strict=True)]
    far = jnp.where(jnp.isfinite(hits.distance), hits.distance, 0.0)
    places, directions = _lamps(model, physics, data)
    for lamp in np.flatnonzero(model.light_active).tolist():
        to = tuple(place - far * ray for place, ray in zip(places[lamp] - eye, rays, strict=True))
        if model.light_type[lamp] == 1:  # mujoco.mjLIGHT_DIRECTIONAL
            facing = jnp.maximum(-_dot(tuple(directions[lamp]), hits.normal), 0.0)
        else:
            to = _unit(to)
            facing = jnp.maximum(_dot(to, hits.normal), 0.0) * _cone(model, lamp, directions[lamp], to)
        ambient, diffuse = model.light_ambient[lamp], model.light_diffuse[lamp]
        light = [x + a + d * facing for x, a, d in zip(light, ambient, diffuse, strict=True)]
    return light


def _cone(model: Any, lamp: int, direction: Array, to: Vector) -> Array:
    """Return the share of a spotlight's intensity that reaches surfaces, given the unit vectors ``to`` from
    the surfaces to the light."""
    along = -_dot(tuple(direction), to)
    inside = along >= np.cos(np.radians(model.light_cutoff[lamp]))
    return jnp.where(inside, jnp.maximum(along, _LEAST) ** model.light_exponent[lamp], 0.0)


def _lamps(model: Any, physics: Any, data: Any) -> tuple[Array, Array]:
    """Return places and directions [nlight, 3] of the lights, which MJX does not compute."""
    mode, body = np.asarray(model.light_mode), np.asarray(model.light_bodyid)
    frame = data.xmat[body]
    fixed = data.xpos[body] + jnp.einsum("lij,lj->li", frame, physics.light_pos)
    along = jnp.einsum("lij,lj->li", frame, physics.light_dir)
    place = jnp.where((mode == 1)[:, None], data.xpos[body] + physics.light_pos0, fixed)
    place = jnp.where((mode == 2)[:, None], data.subtree_com[body] + physics.light_poscom0, place)
    direction = jnp.where(((mode == 1) | (mode == 2))[:, None], physics.light_dir0, along)
    return place, direction
