"""Audio-MAE with the global decoder: its authors' code, and transformers' ViTMAE."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from auricle.data.batching import Batch
from auricle.methods.audio_mae import AudioMaeRun
from peers import Peer, audio_mae
from peers.audio_mae import BANDS, KEPT, PATCH, SECONDS, operations, padded_frames, pixel_loss, spectrograms

__all__ = ["PRESET", "ROWS", "SECONDS", "build", "operations"]

PRESET = "audio_mae_base_global"
ROWS = {**audio_mae.ROWS, "T": "transformers' ViTMAE, SDPA fp32"}


class TransformersMAE(Peer):
    """transformers' ViTMAE. Made for square images, it gets position tables that fit, and our loss."""

    def __init__(self, run: AudioMaeRun) -> None:
        super().__init__()
        encoder, decoder = run.encoder, run.objective
        self.frames = padded_frames(run)
        config = ViTMAEConfig(
            hidden_size=encoder.dim,
            num_hidden_layers=encoder.layers,
            num_attention_heads=encoder.heads,
            intermediate_size=encoder.ffn,
            image_size=2 * PATCH,
            num_channels=1,
            decoder_hidden_size=decoder.decoder_dim,
            decoder_num_hidden_layers=decoder.decoder_layers,
            decoder_num_attention_heads=decoder.decoder_heads,
            decoder_intermediate_size=4 * decoder.decoder_dim,
            mask_ratio=1 - KEPT,
            norm_pix_loss=True,
            attn_implementation="sdpa",
        )
        self.model = ViTMAEForPreTraining(config)
        places = 1 + self.frames // PATCH * BANDS
        embeddings = self.model.vit.embeddings
        embeddings.image_size = (self.frames, PATCH * BANDS)
        embeddings.position_embeddings = nn.Parameter(torch.randn(1, places, encoder.dim), requires_grad=False)
        self.model.decoder.decoder_pos_embed = nn.Parameter(
            torch.randn(1, places, decoder.decoder_dim), requires_grad=False
        )

    def forward(self, batch: Batch) -> Tensor:
        x = spectrograms(batch, self.frames)
        found = self.model.vit(x)
        predicted = self.model.decoder(found.last_hidden_state, found.ids_restore).logits
        return pixel_loss(predicted, x, found.mask)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 4e-4, (0.9, 0.95), weight_decay=1e-4, fused=True)


def build(row: str, run: AudioMaeRun) -> Peer:
    return TransformersMAE(run) if row == "T" else audio_mae.build(row, run)
