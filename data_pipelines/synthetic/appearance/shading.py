"""Compute the colour of each visible point: the compiled part of the renderer.

Light is linear RGB. A surface has wrapped diffuse reflection, two highlights, a bump
from gradient noise and a procedural pattern; light comes from directions with shadow
maps and from nine spherical harmonics dimmed by screen-space occlusion. No fast-math:
the same scene gives the same picture everywhere.
"""

from typing import NamedTuple, no_type_check

import numba
import numpy as np

SKIN, CLOTH, HARD, GROUND = 0, 1, 2, 3
PLAIN, STRIPES, CHECKS, WOOD, WEAVE, BANDS, MARBLE, TILES = range(8)
_KIND, _BUMP, _BLOTCH, _PATTERN, _FREQUENCY, _SECOND = 0, 1, 2, 3, 4, 5
MATERIAL_SIZE = 8
"""Row of a material: kind, bump, blotch, pattern, pattern frequency (1/m), second
colour (3)."""

NOISE = np.random.default_rng(7).normal(0, 1, (32, 32, 32)).astype(np.float32)
_OCCLUDER_REACH = 0.012
"""How far to look for surfaces that block the sky, metres."""
_RING = np.array(
    [[1, 0], [0.5, 0.866], [-0.5, 0.866], [-1, 0], [-0.5, -0.866], [0.5, -0.866]],
    np.float32,
)


class Surface(NamedTuple):
    """Concatenated meshes; float32, per vertex unless said otherwise."""

    faces: np.ndarray
    normals: np.ndarray
    texture: np.ndarray
    """Position (3) in the frame in which noise and patterns live, metres."""
    albedo: np.ndarray
    gloss: np.ndarray
    mesh: np.ndarray
    """Row of `materials`."""
    materials: np.ndarray
    creases: np.ndarray
    """Skin creases, (crease, 10): point, plane normal, half width, radius, depth,
    side (-1 palm, 1 back); in the texture frame of the skin."""
    near_first: np.ndarray
    """Per face of the skin (and one more): where its part of `near_crease` begins."""
    near_crease: np.ndarray
    """Rows of `creases` that reach a face; the others cannot."""


class Lights(NamedTuple):
    """Directional lights and the rest of the surroundings."""

    direction: np.ndarray
    """(light, 3) unit vectors towards the light, camera axes."""
    colour: np.ndarray
    shadow_maps: np.ndarray
    """(light, size, size) nearest depth along the light; inf: nothing there."""
    to_map: np.ndarray
    """(light, 3, 4) from camera space to pixels and depth of the shadow map."""
    harmonics: np.ndarray
    """(9, 3) irradiance divided by pi, camera axes."""


@numba.njit(cache=True, nogil=True, inline="always")
@no_type_check
def _fade(t):
    return t * t * (np.float32(3) - np.float32(2) * t)


@numba.njit(cache=True, nogil=True)
@no_type_check
def noise3(grid, x, y, z):
    """Smooth noise of unit variance at the grid points, period 32."""
    xf, yf, zf = np.floor(x), np.floor(y), np.floor(z)
    i, j, k = int(xf) & 31, int(yf) & 31, int(zf) & 31
    i1, j1, k1 = (i + 1) & 31, (j + 1) & 31, (k + 1) & 31
    u, v, w = _fade(x - xf), _fade(y - yf), _fade(z - zf)
    a = grid[i, j, k] + (grid[i1, j, k] - grid[i, j, k]) * u
    b = grid[i, j1, k] + (grid[i1, j1, k] - grid[i, j1, k]) * u
    c = grid[i, j, k1] + (grid[i1, j, k1] - grid[i, j, k1]) * u
    d = grid[i, j1, k1] + (grid[i1, j1, k1] - grid[i, j1, k1]) * u
    a += (b - a) * v
    c += (d - c) * v
    return a + (c - a) * w


@numba.njit(cache=True, nogil=True)
@no_type_check
def noise_gradient(grid, x, y, z):
    """Return the derivatives of `noise3` along x, y and z."""
    xf, yf, zf = np.floor(x), np.floor(y), np.floor(z)
    i, j, k = int(xf) & 31, int(yf) & 31, int(zf) & 31
    i1, j1, k1 = (i + 1) & 31, (j + 1) & 31, (k + 1) & 31
    p, q, r = x - xf, y - yf, z - zf
    u, v, w = _fade(p), _fade(q), _fade(r)
    six = np.float32(6)
    du, dv, dw = six * p * (1 - p), six * q * (1 - q), six * r * (1 - r)
    a, b = grid[i, j, k], grid[i1, j, k]
    c, d = grid[i, j1, k], grid[i1, j1, k]
    e, f = grid[i, j, k1], grid[i1, j, k1]
    g, h = grid[i, j1, k1], grid[i1, j1, k1]
    low = (b - a) + (d - c - b + a) * v
    high = (f - e) + (h - g - f + e) * v
    ab, cd = a + (b - a) * u, c + (d - c) * u
    ef, gh = e + (f - e) * u, g + (h - g) * u
    front, back = ab + (cd - ab) * v, ef + (gh - ef) * v
    return (
        du * (low + (high - low) * w),
        dv * ((cd - ab) + (gh - ef - cd + ab) * w),
        dw * (back - front),
    )


@numba.njit(cache=True, nogil=True)
@no_type_check
def _pattern(grid, kind, frequency, x, y, z):
    """Return the share of the material's second colour, 0..1."""
    u, v, w = x * frequency, y * frequency, z * frequency
    if kind == STRIPES:
        return np.float32(1) if np.sin(v * 6.2832) > 0.2 else np.float32(0)
    if kind == CHECKS:
        a = 0.5 if np.sin(u * 6.2832) > 0.3 else 0.0
        return np.float32(a + (0.5 if np.sin(v * 6.2832) > 0.3 else 0.0))
    if kind == WOOD:
        bend = noise3(grid, u * 0.15, v * 0.6, w * 0.6)
        ring = v * 0.9 + 0.9 * bend
        fibre = noise3(grid, u * 0.8, v * 14, w * 14)
        grain = 0.5 + 0.5 * np.sin(6.2832 * ring)
        return np.float32(min(max(0.75 * grain * grain + 0.18 * fibre, 0.0), 1.0))
    if kind == WEAVE:
        over = np.sin(u * 6.2832) * np.sin(v * 6.2832)
        return np.float32(0.5 + 0.35 * over + 0.12 * noise3(grid, u * 0.7, v * 0.7, w))
    if kind == BANDS:
        s = v + 0.07 * np.sin(u * 3.0)
        return np.float32(1) if 0.35 < s - np.floor(s) < 0.75 else np.float32(0)
    if kind == MARBLE:
        n = noise3(grid, u, v, w) + 0.5 * noise3(grid, 2.3 * u, 2.3 * v, 2.3 * w)
        return np.float32(min(max(0.5 + 0.4 * n, 0.0), 1.0))
    if kind == TILES:
        a, b = u - np.floor(u), v - np.floor(v)
        return np.float32(1) if a < 0.03 or b < 0.03 else np.float32(0)
    return np.float32(0)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _crease(surface, grid, face, t):
    """Return the depth of the skin's folds at a rest position, 0..1."""
    x, y, z = t
    total = np.float32(0)
    for c in range(surface.near_first[face], surface.near_first[face + 1]):
        row = surface.creases[surface.near_crease[c]]
        dx, dy, dz = x - row[0], y - row[1], z - row[2]
        if dx * dx + dy * dy + dz * dz > row[7] * row[7] or dy * row[9] < 0:
            continue
        wobble = np.float32(0.0007) * noise3(grid, x * 170, y * 170, z * 170)
        d = (dx * row[3] + dy * row[4] + dz * row[5] + wobble) / row[6]
        if abs(d) < 2:
            fall = 1 - (dx * dx + dy * dy + dz * dz) / (row[7] * row[7])
            total += row[8] * np.exp(-d * d) * min(np.float32(1), 3 * fall)
    return min(total, np.float32(1))


@numba.njit(cache=True, nogil=True)
@no_type_check
def _occlusion(zbuffer, x, y, z, n, focal):
    """Return the share of the sky that nearby surfaces leave free."""
    height, width = zbuffer.shape
    blocked, reach = np.float32(0), np.float32(_OCCLUDER_REACH) * focal / z
    n0, n1, n2 = n
    for q in range(12):
        far = np.float32(1) if q >= 6 else np.float32(0.35)
        ox, oy = _RING[q % 6, 0] * far * reach, _RING[q % 6, 1] * far * reach
        if q >= 6:
            ox, oy = -oy, ox
        xx, yy = int(x + ox), int(y + oy)
        if not (0 <= xx < width and 0 <= yy < height):
            continue
        dz = z - zbuffer[yy, xx]
        if not (np.float32(-1) < dz < np.float32(0.03)):
            continue
        sx, sy = (xx - x) * z / focal, (yy - y) * z / focal
        length = np.sqrt(sx * sx + sy * sy + dz * dz) + np.float32(1e-6)
        rise = (sx * n0 + sy * n1 - dz * n2) / length
        blocked += max(rise - np.float32(0.1), np.float32(0))
    return max(np.float32(0.25), np.float32(1) - blocked * np.float32(0.158))


@numba.njit(cache=True, nogil=True)
@no_type_check
def _shadow(shadow_map, to_map, p, spread):
    """Return the share of a light that arrives: nine taps, `spread` pixels apart."""
    size, (p0, p1, p2) = shadow_map.shape[0], p
    u = to_map[0, 0] * p0 + to_map[0, 1] * p1 + to_map[0, 2] * p2 + to_map[0, 3]
    v = to_map[1, 0] * p0 + to_map[1, 1] * p1 + to_map[1, 2] * p2 + to_map[1, 3]
    d = to_map[2, 0] * p0 + to_map[2, 1] * p1 + to_map[2, 2] * p2 + to_map[2, 3]
    margin = 2 * spread + 2
    if not (margin < u < size - margin and margin < v < size - margin):
        return np.float32(1)
    depth, hidden = d - np.float32(0.0025), np.float32(0)
    for j in range(-1, 2):
        for i in range(-1, 2):
            a, b = u + i * spread, v + j * spread
            a0, b0 = int(a), int(b)
            fa, fb = a - np.float32(a0), b - np.float32(b0)
            near = np.float32(0)
            if shadow_map[b0, a0] < depth:
                near += (1 - fa) * (1 - fb)
            if shadow_map[b0, a0 + 1] < depth:
                near += fa * (1 - fb)
            if shadow_map[b0 + 1, a0] < depth:
                near += (1 - fa) * fb
            if shadow_map[b0 + 1, a0 + 1] < depth:
                near += fa * fb
            hidden += near
    return 1 - hidden / np.float32(9)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _sky(c, q, n):
    """Evaluate nine spherical harmonics of one colour at a unit normal."""
    x, y, z = n
    e = c[0, q] * np.float32(0.282095)
    e += np.float32(0.488603) * (y * c[1, q] + z * c[2, q] + x * c[3, q])
    e += np.float32(1.092548) * (x * y * c[4, q] + y * z * c[5, q] + x * z * c[7, q])
    e += np.float32(0.315392) * (3 * z * z - 1) * c[6, q]
    e += np.float32(0.546274) * (x * x - y * y) * c[8, q]
    return max(e, np.float32(0.01))


@numba.njit(cache=True, nogil=True)
@no_type_check
def _mix(values, corners, w):
    """Interpolate three columns of a vertex attribute."""
    i, j, k = corners
    a, b, c = w
    return (
        a * values[i, 0] + b * values[j, 0] + c * values[k, 0],
        a * values[i, 1] + b * values[j, 1] + c * values[k, 1],
        a * values[i, 2] + b * values[j, 2] + c * values[k, 2],
    )


@numba.njit(cache=True, nogil=True)
@no_type_check
def _unit(n):
    x, y, z = n
    length = np.sqrt(x * x + y * y + z * z) + np.float32(1e-9)
    return x / length, y / length, z / length


@numba.njit(cache=True, nogil=True)
@no_type_check
def _bump(grid, n, t, amount, frequency):
    """Tilt a normal by the gradient of noise."""
    x, y, z = t
    gx, gy, gz = noise_gradient(grid, x * frequency, y * frequency, z * frequency)
    return n[0] - amount * gx, n[1] - amount * gy, n[2] - amount * gz


@numba.njit(cache=True, nogil=True)
@no_type_check
def _normal(grid, kind, amount, gloss, n, t, v):
    """Return the normal with its bumps, turned to the viewer."""
    if kind == SKIN:
        if gloss > np.float32(0.6):
            amount *= np.float32(0.2)  # nails are smooth
        n = _bump(grid, n, t, amount * np.float32(0.09), np.float32(500))
        n = _bump(grid, n, t, amount * np.float32(0.03), np.float32(1500))
    elif amount > 0:
        n = _bump(grid, n, t, amount * np.float32(0.06), np.float32(420))
    n0, n1, n2 = _unit(n)
    away = n0 * v[0] + n1 * v[1] + n2 * v[2]
    if away < 0:
        away *= np.float32(1.02)
        return n0 - away * v[0], n1 - away * v[1], n2 - away * v[2]
    return n0, n1, n2


@numba.njit(cache=True, nogil=True)
@no_type_check
def _albedo(grid, material, fold, base, t, out):
    """Return the colour of the material at a texture position."""
    x, y, z = t
    blotch, tint = material[_BLOTCH], np.float32(0)
    coarse = noise3(grid, x * 130, y * 130, z * 130)
    fine = noise3(grid, x * 420, y * 420, z * 420)
    shade_of = 1 + blotch * (np.float32(0.7) * coarse + np.float32(0.5) * fine)
    if int(material[_KIND]) == SKIN:
        tint = blotch * np.float32(0.5) * noise3(grid, x * 90 + 5, y * 90, z * 90)
        shade_of *= 1 - np.float32(0.45) * fold
        tint += np.float32(0.10) * fold
    second = np.float32(0)
    if material[_PATTERN] > 0:
        second = _pattern(grid, int(material[_PATTERN]), material[_FREQUENCY], x, y, z)
    for q in range(3):
        colour = base[q] + second * (material[_SECOND + q] - base[q])
        colour *= shade_of - (np.float32(0) if q == 0 else tint)
        out[q] = max(colour, np.float32(0.004))


@numba.njit(cache=True, nogil=True)
@no_type_check
def _add_lights(lights, kind, gloss, n, v, p, irradiance, highlight):
    wrap_red, wrap = np.float32(0), np.float32(0)
    if kind == SKIN:  # light bleeds around the terminator, red most
        wrap_red, wrap = np.float32(0.25), np.float32(0.10)
    elif kind == CLOTH:
        wrap_red = wrap = np.float32(0.15)
    spread = np.float32(1.0) if kind != GROUND else np.float32(2.5)
    for i in range(lights.direction.shape[0]):
        d0, d1, d2 = (
            lights.direction[i, 0],
            lights.direction[i, 1],
            lights.direction[i, 2],
        )
        facing = n[0] * d0 + n[1] * d1 + n[2] * d2
        if facing + wrap_red <= 0:
            continue
        lit = _shadow(lights.shadow_maps[i], lights.to_map[i], p, spread)
        reach = lit if facing > 0 else lit * np.float32(0.8)
        for q in range(3):
            bleed = wrap_red if q == 0 else wrap
            amount = max(np.float32(0), (facing + bleed) / (1 + bleed))
            irradiance[q] += lights.colour[i, q] * amount * reach
        if facing <= 0 or gloss <= 0:
            continue
        h = _unit((d0 + v[0], d1 + v[1], d2 + v[2]))
        half = max(np.float32(0), n[0] * h[0] + n[1] * h[1] + n[2] * h[2])
        half4 = half * half * half * half
        half12 = half4 * half4 * half4
        sharp = half12 * half12 * half12 * half12
        shine = gloss * lit * (np.float32(0.06) * half12 + np.float32(0.15) * sharp)
        for q in range(3):
            highlight[q] += lights.colour[i, q] * shine


@numba.njit(cache=True, nogil=True)
@no_type_check
def shade(raster, surface, lights, grid, focal, centre, out):
    """Fill albedo, irradiance and highlight (height, width, 3) of the seen pixels.

    `raster` is a `visualization.rasterizer.Raster`; focal and centre in its pixels.
    """
    zbuffer, face_index, barycentric = raster
    albedo, irradiance, highlight = out
    faces, materials = surface.faces, surface.materials
    for y in range(zbuffer.shape[0]):
        for x in range(zbuffer.shape[1]):
            f, z = face_index[y, x], zbuffer[y, x]
            if f < 0:
                continue
            corners = faces[f, 0], faces[f, 1], faces[f, 2]
            w = barycentric[y, x, 0], barycentric[y, x, 1], barycentric[y, x, 2]
            p = (x - centre) / focal * z, (y - centre) / focal * z, z
            v = _unit((-p[0], -p[1], -p[2]))
            t = _mix(surface.texture, corners, w)
            material = materials[surface.mesh[corners[0]]]
            kind, gloss = int(material[_KIND]), np.float32(0)
            for q in range(3):
                gloss += w[q] * surface.gloss[corners[q]]
            base = _mix(surface.albedo, corners, w)
            fold = np.float32(0)
            if kind == SKIN:
                fold = _crease(surface, grid, f, t)
            _albedo(grid, material, fold, base, t, albedo[y, x])
            n = _mix(surface.normals, corners, w)
            n = _normal(grid, kind, material[_BUMP], gloss, n, t, v)
            free = _occlusion(zbuffer, x, y, z, n, focal)
            for q in range(3):
                irradiance[y, x, q] = _sky(lights.harmonics, q, n) * free
            _add_lights(lights, kind, gloss, n, v, p, irradiance[y, x], highlight[y, x])


@numba.njit(cache=True, nogil=True)
@no_type_check
def compose(face_index, parts, background, exposure, shoulder):
    """Put the scene before its background, in place of `background`.

    Light above `shoulder` bends towards 1, here rather than after the blur: a bright
    edge must not eat into its neighbours.
    """
    albedo, irradiance, highlight = parts
    room = np.float32(1) - shoulder
    for y in range(background.shape[0]):
        for x in range(background.shape[1]):
            for q in range(3):
                light = background[y, x, q]
                if face_index[y, x] >= 0:
                    light = albedo[y, x, q] * irradiance[y, x, q] + highlight[y, x, q]
                light *= exposure
                if light > shoulder:
                    light = shoulder + room * np.tanh((light - shoulder) / room)
                background[y, x, q] = light


@numba.njit(cache=True, nogil=True)
@no_type_check
def vertex_normals(vertices, faces):
    """Return unit normals, each the area-weighted mean of the adjacent faces."""
    normals = np.zeros_like(vertices)
    for f in range(faces.shape[0]):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        a, b = vertices[j] - vertices[i], vertices[k] - vertices[i]
        x = a[1] * b[2] - a[2] * b[1]
        y = a[2] * b[0] - a[0] * b[2]
        z = a[0] * b[1] - a[1] * b[0]
        for corner in (i, j, k):
            normals[corner, 0] += x
            normals[corner, 1] += y
            normals[corner, 2] += z
    for i in range(vertices.shape[0]):
        length = np.sqrt((normals[i] ** 2).sum()) + 1e-12
        normals[i] /= length
    return normals
