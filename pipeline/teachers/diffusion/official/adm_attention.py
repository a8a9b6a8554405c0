"""ADM's attention with its own order of operations, for float32 that matches the official code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class OfficialAttention:
    """Replace diffusers' fused attention by the official sequence: bit for bit, but slower.

    One 1x1 convolution gives q, k and v; q and k are scaled by the fourth root each; the softmax
    runs in float32. In half precision the fused kernel is as good, and used instead.

    Args:
        new_order: order of the fused rows; it does not change the result, only keeps the bits.
    """

    def __init__(self, *, new_order: bool) -> None:
        self._new_order = new_order

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend; called by `Attention.forward` with a map (N, C, H, W)."""
        import torch
        from torch.nn import functional as F

        rows, channels, height, width = hidden_states.shape
        heads, size = attn.heads, channels // attn.heads
        flat = hidden_states.reshape(rows, channels, -1)
        weight, bias = self._fused(attn, heads, size)
        qkv = F.conv1d(attn.group_norm(flat), weight, bias)
        if self._new_order:
            parts = [part.reshape(rows * heads, size, -1) for part in qkv.chunk(3, 1)]
        else:
            parts = list(qkv.reshape(rows * heads, 3 * size, -1).split(size, 1))
        q, k, v = parts
        scale = size**-0.25
        mixed = torch.einsum("bct,bcs->bts", q * scale, k * scale)
        mixed = torch.softmax(mixed.float(), -1).to(v.dtype)
        mixed = torch.einsum("bts,bcs->bct", mixed, v).reshape(rows, channels, -1)
        out = attn.to_out[0]
        mixed = F.conv1d(mixed, out.weight[:, :, None], out.bias)
        return (flat + mixed).reshape(rows, channels, height, width)

    def _fused(self, attn: Any, heads: int, size: int) -> tuple[Tensor, Tensor]:
        import torch

        layers = (attn.to_q, attn.to_k, attn.to_v)
        channels = heads * size
        if self._new_order:
            weight = torch.cat([layer.weight for layer in layers])
            bias = torch.cat([layer.bias for layer in layers])
        else:
            weight = torch.stack([layer.weight.view(heads, size, channels) for layer in layers], 1)
            bias = torch.stack([layer.bias.view(heads, size) for layer in layers], 1)
        return weight.reshape(3 * channels, channels, 1), bias.reshape(3 * channels)
