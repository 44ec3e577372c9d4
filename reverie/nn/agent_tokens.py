"""Agent tokens: run by the world's transformer beside a frame's tokens, and read by an agent alone.

In every frame they read all of the frame's tokens and each other, and over time each reads itself in earlier frames.
They have keys and values of their own, so a world with them generates the same frames as without. Source: Dreamer 4
(arXiv 2509.24527, section 3.3); others found that with a single token the critic's error is five times that of eight.

Shapes: B batch, N tokens per frame, A agent tokens, M model width, S window.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from reverie.nn.heads import TaskEmbedding
from reverie.nn.kv_cache import KVCache
from reverie.nn.layers import learned_tokens


class AgentState(NamedTuple):
    """The KV cache of agent tokens, and the id of each row's task (B,)."""

    cache: KVCache
    task_B: Array


class AgentTokens(nnx.Module):
    """A learned tokens, run through the layers of a transformer one frame at a time; with ``tasks`` they know theirs.

    In Dreamer 4 they are a learned base and an embedding of the task.
    """

    def __init__(self, count: int, transformer: Any, tasks: int = 0, *, rngs: nnx.Rngs):
        if transformer.config.registers or count > transformer.tokens:
            raise ValueError(f"agents have at most the {transformer.tokens} tokens of a frame, and it has no registers")
        self.tokens = learned_tokens(rngs, count, transformer.config.width)
        self.tasks = TaskEmbedding(tasks, transformer.config.width, rngs=rngs) if tasks else None

    def empty(self, transformer: Any, batch: int, task: Array | int = 0) -> AgentState:
        """Return the state of these tokens before the first frame, of rows with a task ((B,), or one for all)."""
        tasks = jnp.broadcast_to(jnp.asarray(task, jnp.int32), (batch,))
        return AgentState(transformer.empty(batch, len(self.tokens[...])), tasks)

    def read(self, transformer: Any, x_BNM: Array, past: KVCache, own: AgentState) -> tuple[AgentState, Array]:
        """Read a finished frame: (their state with it, features (B, A, M)).

        ``x_BNM``: the frame's tokens as they enter the transformer; ``past``: its KV cache before that frame.
        """
        c, batch, (frame, count) = transformer.config, len(x_BNM), (x_BNM.shape[1], len(self.tokens[...]))
        seen = jnp.asarray([True] * frame + [False] * count)
        mask = jnp.broadcast_to(seen[None], (frame, frame + count))
        kept = transformer.empty_frame_kv(batch, more=count)
        _, kept = transformer.step_tokens(x_BNM, jnp.int32(0), mask, past, kept)
        still = jnp.ones((count, c.head // 2)), jnp.zeros((count, c.head // 2))  # they have no place in the image
        inputs = transformer.cached_inputs(own.cache, still, jnp.ones((count, frame + count), bool))
        inputs = inputs._replace(offset=jnp.int32(frame))
        x = jnp.broadcast_to(self.tokens[...][None, None], (batch, 1, count, c.width))
        x = x if self.tasks is None else x + self.tasks(own.task_B)[:, None, None]
        h, new, _ = transformer.run_layers(x.astype(x_BNM.dtype), inputs, own.cache, kept)
        return own._replace(cache=own.cache.append(new)), h[:, 0]
