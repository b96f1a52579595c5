"""add_weighted_adapter, written a second time after docs/compose.md, in float64 on whole matrices."""
import hashlib

import numpy as np

_MASK = (1 << 64) - 1


def _stream_state(seed, purpose):
    text = f"adapterd-random-v1\n{seed}\n{purpose}"
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)


def _drawn(state, index):
    """The number that SplitMix64 gives after `index` others."""
    z = (state + (index + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _magnitude(x, density):
    kept = int(density * x.size)
    order = np.argsort(-np.abs(x.ravel()), kind="stable")
    pruned = np.zeros(x.size)
    pruned[order[:kept]] = x.ravel()[order[:kept]]
    return pruned.reshape(x.shape)


def _random(x, density, seed, purpose):
    state = _stream_state(seed, purpose)
    keep = [(_drawn(state, i) >> 11) * 2.0 ** -53 < density for i in range(x.size)]
    return np.where(np.reshape(keep, x.shape), x / density, 0)


def _elected(pruned, weights, frequency):
    votes = sum(np.sign(p) if frequency else p for p in pruned)
    sign = np.where(votes >= 0, 1, -1)
    agree = [np.sign(p) == sign for p in pruned]
    total = sum(w * p * a for w, p, a in zip(weights, pruned, agree))
    return total / np.maximum(sum(a.astype(float) for a in agree), 1)


def _mixed(matrices, weights, method, options, purposes):
    density = options.get("density", 1)
    pruned = matrices
    if density < 1 and method.startswith("dare"):
        pruned = [_random(x, density, options.get("seed", 0), p)
                  for x, p in zip(matrices, purposes)]
    elif density < 1 and (method.startswith("ties") or method.startswith("magnitude")):
        pruned = [_magnitude(x, density) for x in matrices]
    if "ties" in method:
        return _elected(pruned, weights, options.get("majority_sign_method") == "frequency")
    return sum(w * p for w, p in zip(weights, pruned))


def truncated(delta, rank):
    """U S and V^T; of each column of U the element of the largest magnitude is positive."""
    u, s, v = np.linalg.svd(delta, full_matrices=False)
    signs = np.sign(u[np.argmax(np.abs(u), axis=0), np.arange(u.shape[1])])
    return (u * signs * s)[:, :rank], (v * signs[:, None])[:rank]


def clamped(b, a, quantile):
    limit = np.quantile(np.concatenate([b.ravel(), a.ravel()]), quantile)
    return np.clip(b, -limit, limit), np.clip(a, -limit, limit)


def composed(path, parts, combination_type, **options):
    """B A of a module; parts: [(position among the adapters, Pair of peft_rules, weight)]."""
    factors = [pair.factors() for _, pair, _ in parts]
    scaled = [weight * pair.scale for _, pair, weight in parts]
    if combination_type in ("cat", "svd"):
        delta = sum(c * b @ a for c, (a, b) in zip(scaled, factors))
    elif combination_type.endswith("_svd"):
        deltas = [(pair.scale * b @ a).astype(np.float32).astype(float)
                  for (_, pair, _), (a, b) in zip(parts, factors)]
        delta = _mixed(deltas, [weight for _, _, weight in parts], combination_type, options,
                       [f"dare\n{position}\n{path}\ndelta" for position, _, _ in parts])
    else:
        roots = [np.sqrt(abs(c)) for c in scaled]
        signed = [root if c >= 0 else -root for root, c in zip(roots, scaled)]
        a, b = (_mixed([pair[i] for pair in factors], weights, combination_type, options,
                       [f"dare\n{position}\n{path}\n{role}" for position, _, _ in parts])
                for i, weights, role in ((0, signed, "lora_a"), (1, roots, "lora_b")))
        return b @ a
    if not combination_type.endswith("svd"):
        return delta
    rank = options.get("svd_rank") or max(len(a) for a, _ in factors)
    b, a = truncated(delta, rank)
    if "svd_clamp" in options:
        b, a = clamped(b, a, options["svd_clamp"])
    return b @ a
