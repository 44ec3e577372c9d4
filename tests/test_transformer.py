"""The space-time transformer: what it may see, what it must see, and that every way of running it is the same one."""

import dataclasses
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reverie.errors import ReverieError
from reverie.nn import target
from reverie.nn.attention import attend, rotary_space, rotary_time, rotate, why_no_flash
from reverie.nn.target import Target, traced_for
from reverie.nn.transformer import SpaceTimeTransformer, Times, TransformerConfig, unstack_layers

B, T, N, M, S = 2, 8, 4, 16, 3
SMALL = TransformerConfig(width=M, depth=2, heads=2, hidden=32, window=S)
VARIANTS = {
    "plain": {},
    "one key head, capped, registers": {"kv_heads": 1, "soft_cap": 5.0, "registers": 2},
    "alternate, gelu": {"layout": "alternate", "time_every": 2, "activation": "gelu", "qk_norm": False},
    "every second layer looks back": {"time_every": 2, "depth": 4},
    "no time": {"time_every": 0},
    "no space, scanned": {"space": False, "scan": True},
    "bfloat16, capped, scanned": {"dtype": "bfloat16", "soft_cap": 5.0, "kv_heads": 1, "scan": True},
}


def make(grid=(2, 2), extra=0, seed=0, **changes):
    return SpaceTimeTransformer(dataclasses.replace(SMALL, **changes), grid, extra, rngs=nnx.Rngs(seed))


def clip(seed=0, tokens=N, length=T):
    return jax.random.normal(jax.random.key(seed), (B, length, tokens, M))


def frame_by_frame(model, x, cache=None):
    def step(cache, x):
        y, new_kv = model.step(x, cache)
        return cache.append(new_kv), y

    cache, y = jax.lax.scan(step, model.empty(len(x)) if cache is None else cache, jnp.swapaxes(x, 0, 1))
    return jnp.swapaxes(y, 0, 1)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return make(**VARIANTS[request.param])


def test_frame_by_frame_is_the_whole_clip(variant):
    whole, steps = jax.jit(lambda x: (variant(x), frame_by_frame(unstack_layers(variant), x)))(clip())
    # Eight bits of mantissa agree to a few hundredths; anything seen or missed that should not be is off by tenths.
    rounding = 1e-4 if variant.config.dtype == "auto" else 0.1
    np.testing.assert_allclose(steps, whole, atol=rounding)


def test_all_of_the_window_is_seen_and_nothing_of_the_future(variant):
    t, c = T - 2, variant.config

    @jax.jit
    def influence(x):
        """Of every token of the clip on every token of frame t: (N, T, N)."""
        y, pull = jax.vjp(lambda x: variant(x)[0, t], x)
        weights = jax.random.normal(jax.random.key(1), y.shape)
        pulled = jax.vmap(lambda n: pull(weights * (jnp.arange(N) == n)[:, None].astype(y.dtype))[0])(jnp.arange(N))
        return jnp.abs(pulled).max(axis=-1)

    seen = np.asarray(influence(clip()))
    assert not seen[:, 1].any(), "rows are independent"
    seen = seen[:, 0] > 0
    first = max(0, t - c.receptive_field)
    same = np.eye(N, dtype=bool)
    assert not seen[:, t + 1 :].any(), "the future is seen"
    assert not seen[:, :first].any() and seen[:, first].any(), "the receptive field is another"
    for past in range(t - S + 1, t + 1) if c.time_every else (t,):
        assert (seen[:, past] == (True if c.space else same)).all(), f"frame {past} is not seen whole"


def test_changing_the_future_moves_no_bit_of_the_past():
    model = make(registers=1)
    run = jax.jit(model.__call__)
    now, later = run(clip()), clip(1)
    for t in range(1, T):
        mixed = run(jnp.concatenate([clip()[:, :t], later[:, t:]], axis=1))
        np.testing.assert_array_equal(mixed[:, :t], now[:, :t])
        assert not np.array_equal(mixed[:, t], now[:, t])


def value_and_grad(**changes):
    graph, params = nnx.split(make(**changes))
    weights = jnp.cos(jnp.arange(M, dtype=jnp.float32))

    def loss(params, x):
        return jnp.sum(nnx.merge(graph, params)(x) @ weights)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, clip(length=4))


@pytest.fixture(scope="module")
def plain():
    return value_and_grad()


IN_PARTS = {"remat": "layers", "scan": True, "attention_parts": 4}  # of four frames and four tokens


OFFLOADED = {"remat": "offload", "scan": True}
WAYS = [{"scan": True}, {"remat": "full"}, {"remat": "dots", "scan": True}, IN_PARTS, OFFLOADED]


@pytest.mark.parametrize("changes", WAYS)
def test_scanned_or_checkpointed_it_is_the_same_function(plain, changes):
    other = value_and_grad(**changes)
    assert jax.tree.structure(plain) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


def test_offloaded_layers_leave_their_inputs_to_the_host():
    """Two groups of two layers: the host keeps both inputs of each, the device only what follows the last group."""
    graph, params = nnx.split(make(**OFFLOADED, stream="bfloat16", time_every=2, depth=4))
    x = clip()
    program = jax.make_jaxpr(lambda params: jax.vjp(lambda params: nnx.merge(graph, params)(x), params)[1])(params)
    kept: Any = {*program.jaxpr.outvars} - {*program.jaxpr.invars, *program.jaxpr.constvars}
    on_host = {var for var in kept if var.aval.memory_space == jax.memory.Space.Host}
    assert sorted((var.aval.shape, var.aval.dtype.name) for var in on_host) == [
        ((2, *x.shape), "bfloat16"),  # the group's input, in the type of the stream
        ((2, *x.shape), "float32"),
    ]
    assert max(var.aval.size for var in kept - on_host) <= x.size


def test_a_backend_without_host_memory_refuses_to_offload(monkeypatch):
    device = SimpleNamespace(addressable_memories=lambda: [SimpleNamespace(kind="device")])
    monkeypatch.setattr(target.jax, "local_devices", lambda: [device])
    with pytest.raises(ReverieError, match="cpu cannot keep activations on the host: use remat layers"):
        make(**OFFLOADED)(clip())
    with traced_for(Target("tpu")):
        assert target.host_memory() == "pinned_host"


def test_attention_in_parts_never_holds_all_logits_and_masks_each_row():
    """Rows of frames that read themselves alone, with a mask for each row: in parts as at once."""
    rows, length = 6, 5
    q, k, v = (jax.random.normal(jax.random.key(seed), (rows, length, 2, 8)) for seed in range(3))
    mask = jax.random.uniform(jax.random.key(3), (rows, length, length)) < 0.5
    mask = mask | jnp.eye(length, dtype=bool)[None]
    at_once = attend(q, k, v, mask_QS=mask)
    in_parts = jax.jit(lambda q, k, v: attend(q, k, v, mask_QS=mask, parts=3))
    np.testing.assert_allclose(in_parts(q, k, v), at_once, atol=1e-6)
    text = str(jax.make_jaxpr(lambda q: jax.vjp(lambda q: attend(q, k, v, mask_QS=mask, parts=3), q)[1](q))(q))
    assert f"[{rows // 3},2,{length},{length}]" in text and f"[{rows},2,{length},{length}]" not in text


def test_tokens_between_groups_can_be_half_as_large():
    """The function differs by rounding alone, and a frame at a time is still the whole clip."""
    model = make(stream="bfloat16", scan=True)
    whole, steps = jax.jit(lambda x: (model(x), frame_by_frame(model, x)))(clip(length=4))
    assert whole.dtype == jnp.float32
    np.testing.assert_allclose(steps, whole, atol=0.05)
    exact = jax.jit(make(scan=True).__call__)(clip(length=4))
    assert 1e-4 < float(jnp.abs(whole - exact).max()) < 0.1


def test_a_draft_reads_what_it_will_read_when_played():
    """Drafts of frames behind the finished ones: each is what one pass over its past and itself gives."""
    model = make()
    done, drafts = clip(), clip(1)
    times = Times(T - 1, tuple(range(1, T)))
    both = jax.jit(lambda a, b: model(jnp.concatenate([a[:, :-1], b[:, 1:]], axis=1), times=times))(done, drafts)
    alone = jax.jit(model.__call__)
    np.testing.assert_allclose(both[:, : T - 1], alone(done)[:, : T - 1], atol=1e-5)
    for t in (1, 4, T - 1):
        mixed = done.at[:, t].set(drafts[:, t])
        np.testing.assert_allclose(both[:, T - 2 + t], alone(mixed)[:, t], atol=1e-5)


def test_a_mask_over_tokens_hides_them_also_behind_registers():
    """The extra token reads all, no token reads it: it can watch a world without touching it."""
    model = make(extra=1, registers=2, depth=3, scan=True)
    mask = jnp.ones((N + 1, N + 1), bool).at[:N, N].set(False)
    run = jax.jit(lambda x: model(x, mask))
    x = clip(tokens=N + 1, length=3)
    changed = run(x.at[:, :, N].add(1.0))
    np.testing.assert_array_equal(changed[:, :, :N], run(x)[:, :, :N])
    touched = run(x.at[:, :, 0].add(1.0))
    assert (np.abs(np.asarray(touched - run(x))[:, :, N]).max(axis=-1) > 0).all()


def test_registers_are_read_under_a_mask_as_well():
    model, mask = make(registers=2), jnp.asarray(np.tril(np.ones((N, N), bool)))

    @jax.jit
    def output(registers):
        graph, weights = nnx.split(model)
        other = nnx.merge(graph, jax.tree.map(lambda leaf: leaf, weights))
        other.registers[...] = registers
        return other(clip(length=1), mask)

    moved = np.abs(np.asarray(output(model.registers[...] * 3) - output(model.registers[...]))).max(axis=-1)
    assert (moved > 1e-4).all(), "a token reads no register"


def test_time_and_space_are_different_places():
    """A mark at frame 1, token 2 is not a mark at frame 2, token 1 (nor is row 0, column 1 row 1, column 0)."""
    model = make(grid=(4, 1), window=4)
    blank = jnp.ones((1, 4, 4, M)) * 0.1

    @jax.jit
    def seen(t, n):
        return model(blank.at[0, t, n].add(1.0))[0, 3]

    for a, b in (((1, 2), (2, 1)), ((0, 3), (3, 0))):
        assert np.abs(np.asarray(seen(*a) - seen(*b))).max() > 1e-3
    cos, sin = rotary_space(2, 2, 0, 8)
    assert not np.allclose(sin[1], sin[2]) and not np.allclose(cos[1], cos[2])


def test_rotary_phases_are_exact_at_any_age():
    q, k = jax.random.normal(jax.random.key(0), (2, 6, 1, 8))

    def scores(start):
        positions = np.uint32(start) + np.arange(6, dtype=np.uint32)
        table = rotary_time(positions, 8)
        return jnp.einsum("qkd,skd->qs", rotate(q, *table), rotate(k, *table))

    for start in (1, 100_000, 2**24 + 1, 2**31, 2**32 - 3):  # the last wraps to 0 in the middle
        np.testing.assert_allclose(scores(start), scores(0), atol=2e-5)


def test_a_world_that_is_very_old_goes_on_as_a_young_one():
    model = make(window=4)
    x = clip(length=12)
    young = model.empty(B)
    run = jax.jit(lambda cache: frame_by_frame(model, x, cache))
    old = run(young._replace(time=jnp.uint32(2**31)))
    # An old world's cache is full of zeros; until the last of these has left the window, the two differ.
    np.testing.assert_allclose(old[:, 7:], run(young)[:, 7:], atol=1e-4)


def test_attention_is_the_softmax_it_says():
    q = jax.random.normal(jax.random.key(0), (2, 5, 4, 8))
    k, v = jax.random.normal(jax.random.key(1), (2, 2, 5, 2, 8))
    age = np.arange(5)[:, None] - np.arange(5)[None]
    for window, cap in ((2, 0.0), (9, 2.0)):
        logits = np.einsum("bqkd,bskd->bkqs", q, np.repeat(k, 2, axis=2)) / np.sqrt(8)
        logits = cap * np.tanh(logits / cap) if cap else logits
        logits = np.where((age >= 0) & (age < window), logits, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        expected = np.einsum("bkqs,bskd->bqkd", weights, np.repeat(v, 2, axis=2))
        band = jnp.asarray((age >= 0) & (age < window))
        arguments: Any
        for arguments in ({"causal": True, "window": window}, {"mask_QS": band}):
            found = jax.jit(partial(attend, soft_cap=cap, **arguments))(q, k, v)
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_sizes_that_cannot_be_are_refused():
    for changes in ({"heads": 3}, {"kv_heads": 3}, {"time_every": 3}, {"layout": "alternate"}):
        with pytest.raises(ValueError):
            dataclasses.replace(SMALL, **changes)


def test_it_also_runs_where_modules_are_trees():
    """Flax is about to make trees the default: no module may be found at two places of a model."""
    plain = jax.jit(make(registers=1).__call__)(clip())
    was = nnx.set_graph_mode.current_value()
    with nnx.set_graph_mode(False):
        graph, params = nnx.split(make(registers=1))

        def loss(params):
            y = nnx.merge(graph, params)(clip())
            return jnp.sum(jnp.square(y)), y

        grads, y = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(y, plain, atol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert nnx.set_graph_mode.current_value() is was


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"masked": True}, ""),
        ({"queries": 17}, ""),
        ({"masked": True, "queries": 17}, "17 queries"),
        ({"masked": True, "keys": 33}, "33 keys"),
        ({"width": 20}, "20 wide"),
        ({"width": 256}, "256 wide"),
        ({"width": 256, "capability": 9.0}, ""),
        ({"dtype": jnp.float32}, "float32"),
        ({"soft_cap": 50.0}, "capped"),
        ({"capability": 7.5}, "below 8.0"),
    ],
)
def test_flash_attention_is_used_where_cudnn_has_a_kernel(change, says):
    """Elsewhere JAX would raise; asked by shape, since there is no GPU here."""
    case = {"masked": False, "queries": 16, "keys": 32, "width": 64, "dtype": jnp.bfloat16}
    case |= {"soft_cap": 0.0, "capability": 8.0} | change
    q = jax.ShapeDtypeStruct((2, case["queries"], 4, case["width"]), case["dtype"])
    k = jax.ShapeDtypeStruct((2, case["keys"], 2, case["width"]), case["dtype"])
    reason = why_no_flash(q, k, case["masked"], case["soft_cap"], case["capability"])
    assert says in reason and bool(reason) == bool(says)
